"""The torch side: the reference module, its checkpoints, and a runner over it. The only floor where torch lives."""
