"""Models as other programs run them: one ONNX graph an exit, compared with PyTorch before it is kept."""
