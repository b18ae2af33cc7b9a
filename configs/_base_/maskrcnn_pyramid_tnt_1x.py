# Mask R-CNN with PyramidTNT on COCO (data/coco). The authors published no detection program; what the paper leaves
# open is as for MPViT. Images are normalised as PyramidTNT's are. For a released backbone add
#   --cfg-options model.backbone.init_cfg.type=mmvit.OfficialWeights model.backbone.init_cfg.checkpoint=FILE
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(_delete_=True, type='mmvit.PyramidTNT', arch='small', upsample=True, norm_cfg=dict(type='SyncBN')),
)
optim_wrapper = dict(clip_grad=dict(max_norm=1.0, norm_type=2))
