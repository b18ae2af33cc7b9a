# As MPViT's authors trained it, with detectron2: L1 losses, three stages of equal weight that are not sampled anew, and
# one mask head.
_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'
l1_loss = dict(_delete_=True, type='L1Loss', loss_weight=1.0)
rcnn = _base_.model.train_cfg.rcnn
model = dict(
    backbone=dict(_delete_=True, type='mmvit.MPViT', arch='small', norm_cfg=dict(type='SyncBN')),
    rpn_head=dict(loss_bbox=l1_loss),
    roi_head=dict(
        type='mmvit.detectron2.CascadeRoIHead',
        stage_loss_weights=[1, 1, 1],
        bbox_head=[
            dict(
                type='mmvit.detectron2.Shared2FCBBoxHead',
                in_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder',
                    target_means=[0.0, 0.0, 0.0, 0.0],
                    target_stds=[1 / centre, 1 / centre, 1 / size, 1 / size],  # mmdet rounds the last stage's
                    add_ctr_clamp=True,  # a box may shrink without bound
                    ctr_clamp=10**6,
                ),
                reg_class_agnostic=True,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0),
            )
            for centre, size in ((10, 5), (20, 10), (30, 15))
        ],
    ),
    train_cfg=dict(rcnn=[rcnn[0], *(dict(stage, sampler=dict(type='PseudoSampler')) for stage in rcnn[1:])]),
)
