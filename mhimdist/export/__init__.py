"""Trained networks in forms that need no mhimdist: safetensors with one module, ONNX, and a model card."""
