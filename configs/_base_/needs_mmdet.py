# mmseg's Mask2Former is mmdet's head.
try:
    __import__('mmdet')
except ModuleNotFoundError:
    message = "mmseg's Mask2Former is mmdet's head, and mmdet is not installed: pip install 'mmvit[det]'"
    raise ImportError(message) from None
