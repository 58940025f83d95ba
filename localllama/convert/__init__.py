"""From original weights to quantized GGUF in one pass.

source      where a checkpoint's files are: a folder, or a repository still to come
checkpoint  open_checkpoint(source) -> Model, whatever its layout; opening.open_path for paths
model       the seam: a Model's metadata and tensors, named, shaped and read as a GGUF has them
layout      what the output will be, before a weight is read; writer makes it
"""
