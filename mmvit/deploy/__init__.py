"""Models that leave: a file in ONNX or in OpenVINO's format, and what runs it without PyTorch and OpenMMLab."""

from mmvit.deploy.exporter import export

__all__ = ['export']
