"""Running a bundle: NumPy, ONNX Runtime and tokenizers; no torch, onnx, onnxscript or transformers."""
