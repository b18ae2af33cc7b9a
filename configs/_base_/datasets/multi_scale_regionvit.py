# multi_scale.py up to larger short sides, with a long side for each size of the tests. After the crop, boxes are
# computed anew from the masks, where there are any, and those of empty masks are dropped.
_base_ = './multi_scale.py'
crop_tightly = [
    dict(_base_.crop, recompute_bbox=True),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1e-5, 1e-5), keep_empty=False),
]
resize_672 = dict(_base_.resize_to, scales=[(short, 1120) for short in range(480, 897, 32)])
resize_896 = dict(_base_.resize_to, scales=[(short, 1344) for short in range(480, 897, 32)])
multi_scale_672 = dict(_base_.multi_scale, transforms=[[resize_672], [_base_.shrink, *crop_tightly, resize_672]])
multi_scale_896 = dict(_base_.multi_scale, transforms=[[resize_896], [_base_.shrink, *crop_tightly, resize_896]])
