# SegFormer on ADE20K as mmseg trains it with MiT (segformer_mit-b0_8xb2-160k_ade20k-512x512.py): the schedule is that
# of ade20k_160k.py; the head learns ten times as fast, and norms and positions do not decay.
_base_ = './ade20k_160k.py'
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'head': dict(lr_mult=10.0),
            'norm': dict(decay_mult=0.0),
            '_pos': dict(decay_mult=0.0),  # PyramidTNT's and RegionViT's; MiT has none
        }
    )
)
