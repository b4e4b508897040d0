"""Serving an artifact with NVIDIA's Triton Inference Server: the model repository, and what runs inside the server."""
