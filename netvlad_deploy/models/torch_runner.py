"""Run the unfolded torch module as a runner, to compare with and to time against."""

import torch

from netvlad_deploy.arrays import Arrays
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec import DESCRIPTOR, FEATURES, MASK


class TorchRunner(Runner):
    """Run a reference module on the CPU in `inference_mode`, with as many threads as asked."""

    def __init__(self, module: NetVLAD, *, threads: int | None = None) -> None:
        super().__init__("torch", module.spec, inputs=(FEATURES,), optional_inputs=(MASK,), outputs=(DESCRIPTOR,))
        self.module = module.eval()
        if threads is not None:
            torch.set_num_threads(threads)

    def _run(self, feeds: Arrays) -> Arrays:
        with torch.inference_mode():
            mask = torch.from_numpy(feeds[MASK]) if MASK in feeds else None
            return {DESCRIPTOR: self.module(torch.from_numpy(feeds[FEATURES]), mask).numpy()}
