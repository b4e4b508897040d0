"""Scripted doubles of TensorRT, CUDA and ONNX Runtime, strict as the bindings they stand for."""
