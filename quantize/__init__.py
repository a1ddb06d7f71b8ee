"""Quantization of weights: methods and storage layouts, in NumPy alone."""
