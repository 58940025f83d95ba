"""From original weights to quantized GGUF in one pass."""
