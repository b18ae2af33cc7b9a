# The published recipe on COCO (data/coco). To fine-tune a released backbone, as the authors did, add
#   --cfg-options model.backbone.init_cfg.type=mmvit.OfficialWeights model.backbone.init_cfg.checkpoint=FILE
_base_ = [
    './models/maskrcnn_mpvit.py',
    'mmdet::_base_/datasets/coco_instance.py',
    './schedules/mpvit_1x.py',
    'mmdet::_base_/default_runtime.py',
]
# Images without boxes are kept.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
