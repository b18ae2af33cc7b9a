# Every image becomes 896x1344 or 1344x896 pixels, in training and testing.
_base_ = './maskrcnn_regionvit_b_w14_peg.py'
_base_.train_pipeline[2].scale = _base_.test_pipeline[1].scale = (1344, 896)
train_dataloader = dict(dataset=dict(pipeline=_base_.train_pipeline))
val_dataloader = test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
