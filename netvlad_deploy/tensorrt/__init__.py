"""TensorRT: building engines with it, and running them on a GPU."""
