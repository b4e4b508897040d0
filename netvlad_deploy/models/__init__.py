"""The torch side: the reference module, its checkpoints, and a runner over it."""

from netvlad_deploy.models.netvlad import NetVLAD

__all__ = ["NetVLAD"]
