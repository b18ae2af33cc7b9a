# What mmdet's recipes for Swin spare from weight decay: norms and positions, here under the names of mmvit's backbones.
norms_and_positions = {
    name: dict(decay_mult=0.0) for name in ('norm', 'inner_pos', 'outer_pos', 'relative_pos', 'rel_pos_table')
}
# The same for backbones that learn at a tenth of the rate. Of the keys in a parameter's name the longest holds.
slow_backbone = {
    'backbone': dict(lr_mult=0.1),
    'post_norm.weight': dict(decay_mult=0.0),  # of a decoder
    'post_norm.bias': dict(decay_mult=0.0),
    **{
        name: dict(lr_mult=0.1, decay_mult=0.0)
        for name in (
            *('inner_pos', 'outer_pos', 'relative_pos', 'rel_pos_table'),
            *('norm.weight', 'norm0.weight', 'norm1.weight', 'norm2.weight', 'norm3.weight'),
            *('norm.bias', 'norm0.bias', 'norm1.bias', 'norm2.bias', 'norm3.bias'),
        )
    },
}
