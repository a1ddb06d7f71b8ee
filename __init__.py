"""Nearfield: Qwen2.5-Omni on your own desktop, offline, from quantized ONNX graphs."""

__version__ = "0.1.0"
