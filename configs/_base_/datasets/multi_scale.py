# DETR's resizing in training: to a short side of 480 to 800, for half of the images after a crop from a smaller resize.
_resize = dict(type='RandomChoiceResize', scales=[(short, 1333) for short in range(480, 801, 32)], keep_ratio=True)
_shrink = dict(type='RandomChoiceResize', scales=[(short, 1333) for short in (400, 500, 600)], keep_ratio=True)
_crop = dict(type='RandomCrop', crop_type='absolute_range', crop_size=(384, 600), allow_negative_crop=True)
multi_scale = dict(type='RandomChoice', transforms=[[_resize], [_shrink, _crop, _resize]])
