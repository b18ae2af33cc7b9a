"""Keys and shapes of neck and heads in detectron2's and mmseg 0.x's files, from how those libraries name their modules.

Each function gives {key: shape}; the backbone's keys are in data/layouts_*.json.
"""


def _layer(name, *shape):
    return {f'{name}.weight': shape, f'{name}.bias': shape[:1]}


def _merged(*layouts):
    return {key: shape for layout in layouts for key, shape in layout.items()}


def _pyramid(in_channels, first, width):
    """Feature pyramid whose maps are numbered by the logarithm of their stride."""
    return _merged(
        *(_layer(f'backbone.fpn_lateral{first + i}', width, c, 1, 1) for i, c in enumerate(in_channels)),
        *(_layer(f'backbone.fpn_output{first + i}', width, width, 3, 3) for i in range(len(in_channels))),
    )


def detectron2_retinanet(in_channels, width=256, classes=80, anchors=9):
    return _merged(
        _pyramid(in_channels, 3, width),
        _layer('backbone.top_block.p6', width, in_channels[-1], 3, 3),
        _layer('backbone.top_block.p7', width, width, 3, 3),
        *(_layer(f'head.cls_subnet.{i}', width, width, 3, 3) for i in (0, 2, 4, 6)),
        *(_layer(f'head.bbox_subnet.{i}', width, width, 3, 3) for i in (0, 2, 4, 6)),
        _layer('head.cls_score', anchors * classes, width, 3, 3),
        _layer('head.bbox_pred', anchors * 4, width, 3, 3),
    )


def _proposals(width, anchors=3):
    return _merged(
        _layer('proposal_generator.rpn_head.conv', width, width, 3, 3),
        _layer('proposal_generator.rpn_head.objectness_logits', anchors, width, 1, 1),
        _layer('proposal_generator.rpn_head.anchor_deltas', anchors * 4, width, 1, 1),
    )


def _boxes(width, hidden, classes, deltas, stage=''):
    return _merged(
        _layer(f'roi_heads.box_head{stage}.fc1', hidden, width * 7 * 7),
        _layer(f'roi_heads.box_head{stage}.fc2', hidden, hidden),
        _layer(f'roi_heads.box_predictor{stage}.cls_score', classes + 1, hidden),
        _layer(f'roi_heads.box_predictor{stage}.bbox_pred', deltas, hidden),
    )


def _masks(width, classes, convs):
    return _merged(
        *(_layer(f'roi_heads.mask_head.mask_fcn{i + 1}', width, width, 3, 3) for i in range(convs)),
        _layer('roi_heads.mask_head.deconv', width, width, 2, 2),
        _layer('roi_heads.mask_head.predictor', classes, width, 1, 1),
    )


def detectron2_maskrcnn(in_channels, width=256, hidden=1024, classes=80, mask_convs=4):
    return _merged(
        _pyramid(in_channels, 2, width),
        _proposals(width),
        _boxes(width, hidden, classes, deltas=4 * classes),
        _masks(width, classes, mask_convs),
    )


def detectron2_cascade(in_channels, width=256, hidden=1024, classes=80):
    """Three box heads that do not tell classes apart, and one mask head."""
    return _merged(
        _pyramid(in_channels, 2, width),
        _proposals(width),
        *(_boxes(width, hidden, classes, deltas=4, stage=f'.{i}') for i in range(3)),
        _masks(width, classes, convs=4),
    )


def _conv_norm(name, out, in_, size):
    norm = {f'{name}.bn.{key}': (out,) for key in ('weight', 'bias', 'running_mean', 'running_var')}
    return {f'{name}.conv.weight': (out, in_, size, size), **norm, f'{name}.bn.num_batches_tracked': ()}


def mmseg_upernet(in_channels, width=512, classes=150, auxiliary_width=256):
    """UPerHead with pooling to 1, 2, 3 and 6, and an FCNHead with one convolution on the third map."""
    return _merged(
        *(_conv_norm(f'decode_head.psp_modules.{i}.1', width, in_channels[-1], 1) for i in range(4)),
        _conv_norm('decode_head.bottleneck', width, in_channels[-1] + 4 * width, 3),
        *(_conv_norm(f'decode_head.lateral_convs.{i}', width, c, 1) for i, c in enumerate(in_channels[:-1])),
        *(_conv_norm(f'decode_head.fpn_convs.{i}', width, width, 3) for i in range(3)),
        _conv_norm('decode_head.fpn_bottleneck', width, 4 * width, 3),
        _layer('decode_head.conv_seg', classes, width, 1, 1),
        _conv_norm('auxiliary_head.convs.0', auxiliary_width, in_channels[2], 3),
        _layer('auxiliary_head.conv_seg', classes, auxiliary_width, 1, 1),
    )
