"""Models that leave: one ONNX file, and what runs it without PyTorch and OpenMMLab."""
