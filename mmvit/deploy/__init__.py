"""Models that leave: one ONNX file, and what runs it without PyTorch and OpenMMLab."""

from mmvit.deploy.exporter import export

__all__ = ['export']
