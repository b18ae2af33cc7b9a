"""Annotated images for a step of a detector or segmenter."""

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample


def sample(size, boxes=1):
    mask = np.zeros((1, *size), np.uint8)
    mask[:, 10:40, 20:50] = 1
    instances = InstanceData(
        bboxes=torch.tensor([[20.0, 10.0, 50.0, 40.0]])[:boxes],
        labels=torch.tensor([3])[:boxes],
        masks=BitmapMasks(mask[:boxes], *size),
    )
    data_sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=size)
    )
    data_sample.gt_instances = instances
    data_sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0))
    return data_sample


def segmented(size):
    labels = torch.arange(size[0] * size[1]).remainder(150).view(1, *size)
    return SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=size, ori_shape=size))
