"""From the torch reference to an ONNX graph and from the graph to an engine."""
