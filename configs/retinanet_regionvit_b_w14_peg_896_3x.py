# Short side 896, long side 1344 in testing.
_base_ = './retinanet_regionvit_b_w14_peg_3x.py'
_base_.test_pipeline[1].scale = (1344, 896)
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
test_dataloader = val_dataloader
