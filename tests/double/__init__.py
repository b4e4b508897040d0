"""Scripted doubles of TensorRT and CUDA, strict as the bindings they stand for."""
