# Long sides up to 1344 pixels in training; a short side of 896 in testing.
_base_ = './retinanet_regionvit_b_w14_peg_3x.py'
_base_.train_pipeline[2] = _base_.multi_scale_896
_base_.test_pipeline[1].scale = (1344, 896)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
