"""netvlad-deploy: from a trained NetVLAD in PyTorch to a verified TensorRT engine."""
