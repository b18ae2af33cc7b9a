# Mask R-CNN with RegionViT on COCO (data/coco), as published: short side 672, long side 1120; norms do not decay.
# To fine-tune a released backbone, as the authors did, add
#   --cfg-options model.backbone.init_cfg.type=mmvit.OfficialWeights model.backbone.init_cfg.checkpoint=FILE
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(backbone=dict(_delete_=True, type='mmvit.RegionViT', arch='small', drop_path_rate=0.2))
optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0))

scale = (1120, 672)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
