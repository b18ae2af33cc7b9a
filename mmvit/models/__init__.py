"""The backbones, listed in :mod:`mmvit.models.families`."""

from mmvit.models.families import *  # noqa: F403
