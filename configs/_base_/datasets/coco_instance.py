# COCO masks (in data/coco), read and resized as by detectron2.
_base_ = 'mmdet::_base_/datasets/coco_instance.py'
_base_.train_pipeline[0].imdecode_backend = _base_.test_pipeline[0].imdecode_backend = 'pillow'
_base_.train_pipeline[2].update(type='mmvit.detectron2.Resize', backend='pillow')
_base_.test_pipeline[1].update(type='mmvit.detectron2.Resize', backend='pillow')
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
