"""From a checkpoint and data of its kind to a quantized checkpoint: `nearfield quantize`."""
