"""What an exported model's file says about resizing, read from a test pipeline of mmdet or mmseg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCOPES = ('mmcv', 'mmdet', 'mmseg', 'mmvit')
# By a transform's name without its scope: whose rounding it has.
ROUNDING = {'Resize': 'mmcv', 'detectron2.Resize': 'detectron2'}
INTERPOLATION = {'cv2': 'bilinear', 'pillow': 'antialiased'}  # Pillow's bilinear looks at all pixels when it shrinks
# What every runner does or need not do, with the values that it can repeat.
PLAIN: dict[str, dict[str, tuple]] = {
    'LoadImageFromFile': {
        'color_type': ('color',),
        'imdecode_backend': ('cv2', 'pillow'),  # both read the files of a camera to the same pixels
    },
    'LoadAnnotations': {},
    'LoadPanopticAnnotations': {},
    'PackDetInputs': {},
    'PackSegInputs': {},
}
RESIZE = {'interpolation': ('bilinear',), 'backend': tuple(INTERPOLATION)}


def resize_rule(test_pipeline: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What repeats a test pipeline's resizing.

    Args:
        test_pipeline: The pipeline of a config's ``test_dataloader``.

    Returns:
        ``scale`` as [width, height] in pixels (with ``keep_ratio`` the limits of the long and the short side, in any
        order), ``keep_ratio``, ``rounding`` (``'mmcv'`` or ``'detectron2'``) and ``interpolation`` (``'bilinear'``,
        ``'bilinear_float32'`` or ``'antialiased'``). None: images keep their size.

    Raises:
        ValueError: The pipeline does something else to an image.
    """
    rules = [resize for step in test_pipeline if (resize := _read(step))]
    if len(rules) > 1:
        raise ValueError('the test pipeline resizes more than once, which an exported model cannot repeat: resize once')
    if rules and any(step.get('to_float32') for step in test_pipeline):
        rules[0]['interpolation'] = 'bilinear_float32'  # Pillow takes no such images
    return rules[0] if rules else None


def _read(step: Mapping[str, Any]) -> dict[str, Any] | None:
    """The rule of a step that resizes, None of a step that leaves the image as it is."""
    name = _without_scope(step['type'])
    if name in ROUNDING:
        _check(step, RESIZE)
        return _resize(name, step)
    if name not in PLAIN:
        raise ValueError(f'the test pipeline has {step["type"]}, which an exported model cannot repeat: leave it out')
    _check(step, PLAIN[name])
    return None


def _check(step: Mapping[str, Any], repeatable: Mapping[str, tuple]) -> None:
    for argument, values in repeatable.items():
        if argument in step and step[argument] not in values:
            raise ValueError(
                f'{step["type"]} of the test pipeline has {argument}={step[argument]!r}, which an exported model '
                f'cannot repeat: set it to {" or ".join(map(repr, values))}'
            )


def _resize(name: str, step: Mapping[str, Any]) -> dict[str, Any]:
    scale = step.get('scale')
    if scale is None:
        raise ValueError(f'{step["type"]} of the test pipeline has no scale in pixels: give it scale=(width, height)')
    return {
        'scale': [scale, scale] if isinstance(scale, int) else list(scale),
        'keep_ratio': step.get('keep_ratio', False),
        'rounding': ROUNDING[name],
        'interpolation': INTERPOLATION[step.get('backend', 'cv2')],
    }


def _without_scope(name: object) -> str:
    if not isinstance(name, str):
        raise ValueError(f'the test pipeline names {name} by its class: name it by a string')
    scope, _, rest = name.partition('.')
    return rest if scope in SCOPES else name
