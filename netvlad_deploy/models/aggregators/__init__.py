"""Layers other than NetVLAD that turn local descriptors into one descriptor: its heirs and relatives."""
