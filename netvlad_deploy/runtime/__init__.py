"""What runs artifacts. Nothing here imports torch, so a device without it can still embed, validate and measure."""
