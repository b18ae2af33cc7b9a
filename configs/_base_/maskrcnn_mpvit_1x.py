# Mask R-CNN with MPViT on COCO (data/coco), as published: 90k iterations of 8 GPUs x 2 images, here as 12 epochs;
# every parameter decays. To fine-tune a released backbone, as the authors did, add
#   --cfg-options model.backbone.init_cfg.type=mmvit.OfficialWeights model.backbone.init_cfg.checkpoint=FILE
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './schedules/adamw_1x.py',
    'mmdet::_base_/default_runtime.py',
]
model = dict(backbone=dict(_delete_=True, type='mmvit.MPViT', arch='small', norm_cfg=dict(type='SyncBN')))
# Images without boxes are kept.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0, norm_type=2))
