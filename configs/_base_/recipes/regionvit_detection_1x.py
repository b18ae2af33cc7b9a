# COCO boxes (in data/coco) as RegionViT's authors trained: every image becomes 672x1120 pixels, or 1120x672 if it is
# higher than wide, in training and testing. Its ratio is not kept.
_base_ = ['../datasets/coco_detection.py', '../schedules/regionvit_1x.py', '../detection_runtime.py']
size = dict(scale=(1120, 672), keep_ratio=False)
_base_.train_pipeline[2].update(size)
_base_.test_pipeline[1].update(size)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
