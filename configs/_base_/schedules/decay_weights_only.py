# An option of every recipe: no weight decay for norms, biases, positions and relative position tables. By default all
# that the authors let decay does. To choose it, write in a config of your own over one of these:
#   optim_wrapper = dict(paramwise_cfg=_base_.decay_weights_only)
decay_weights_only = dict(
    norm_decay_mult=0.0,
    bias_decay_mult=0.0,
    custom_keys={
        name: dict(decay_mult=0.0)
        # PyramidTNT's and RegionViT's positions, and what RegionViT's recipe says of biases and norms
        for name in (
            *('inner_pos', 'outer_pos', 'relative_pos', 'rel_pos_table', '.bias'),
            *(f'{norm}.weight' for norm in ('stem.local.norm1', 'stem.local.norm2', 'projection.norm', 'det_norm')),
        )
    },
)
