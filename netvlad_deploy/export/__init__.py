"""From a torch module to an ONNX file: folded, rounded, audited, traced and written."""
