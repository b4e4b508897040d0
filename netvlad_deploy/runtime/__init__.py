"""Runners of artifacts. Only `torch_runner` imports torch, so a device without it can embed, validate and measure."""
