# DETR's resizing in training: to one of many short sides, for half of the images after a crop from a smaller resize,
# whose long side has no limit.
resize_to = dict(type='RandomChoiceResize', resize_type='mmvit.detectron2.Resize', keep_ratio=True, backend='pillow')
shrink = dict(resize_to, scales=[(short, 10**6) for short in (400, 500, 600)])
crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True)
resize = dict(resize_to, scales=[(short, 1333) for short in range(480, 801, 32)])
multi_scale = dict(type='RandomChoice', transforms=[[resize], [shrink, crop, resize]])
