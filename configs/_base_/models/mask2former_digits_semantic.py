# Mask2Former in mmseg for the embedded data set's eleven classes.
_base_ = ['../needs_mmdet.py', './mask2former_digits_head.py']
custom_imports = dict(imports='mmdet.models', allow_failed_imports=False)
model = dict(
    type='mmseg.EncoderDecoder',
    data_preprocessor=dict(
        type='mmseg.SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(128, 128),
        test_cfg=dict(size_divisor=32),
    ),
    decode_head=dict(
        **_base_.mask2former_head,
        type='mmseg.Mask2FormerHead',
        num_classes=11,
        loss_cls=dict(type='mmdet.CrossEntropyLoss', loss_weight=2.0, class_weight=[1.0] * 11 + [0.1]),
        train_cfg=_base_.mask2former_assignment,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
