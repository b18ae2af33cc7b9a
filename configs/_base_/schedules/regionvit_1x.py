# adamw_1x.py as RegionViT's authors ran it. Biases decay by 1e-4 and the weights of nn.LayerNorm not at all; the norms
# over maps are of a class that detectron2's rule for norms does not know, and decay like any weight.
_base_ = './adamw_1x.py'
_base_.param_scheduler[0].start_factor = 0.001
map_norms = ('stem.local.norm1', 'stem.local.norm2', 'projection.norm', 'det_norm')
optim_wrapper = dict(
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            '.bias': dict(decay_mult=1e-4 / 0.05),
            **{f'{norm}.weight': dict(decay_mult=1.0) for norm in map_norms},
        },
    )
)
