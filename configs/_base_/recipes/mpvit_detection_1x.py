# COCO boxes (in data/coco) as MPViT's authors trained: 90k iterations of 8 GPUs x 2 images, here as 12 epochs; every
# parameter decays. PyramidTNT's authors published no detection program: what their paper leaves open is as here.
_base_ = ['../datasets/coco_detection.py', '../schedules/adamw_1x.py', '../detection_runtime.py']
# Images without boxes are kept.
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False)))
optim_wrapper = dict(clip_grad=dict(max_norm=1.0, norm_type=2))
