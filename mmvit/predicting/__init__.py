"""Predictions of a trained detector or segmenter, with mmdet's and mmseg's inferencers.

Images, folders, videos, addresses and arrays go in. Data samples, COCO's results and drawn pictures come out. Nothing
in a checkpoint is run.
"""

from mmvit.predicting.predictor import Predictor, predict

__all__ = ['Predictor', 'predict']
