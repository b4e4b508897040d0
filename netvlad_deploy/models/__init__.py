"""The reference module in torch, its checkpoints and dialects, and the image backbones under it."""

from netvlad_deploy.models.netvlad import NetVLAD

__all__ = ["NetVLAD"]
