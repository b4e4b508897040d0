"""ONNX files of other makers: read, the NetVLAD in them found, and its parameters recovered."""
