"""Run an unfolded torch module as a runner, to compare with and to time against."""

import numpy as np
import torch

from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.heads import Heads
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK
from netvlad_deploy.support.arrays import Arrays


class TorchRunner(Runner):
    """Run a head, several of them, another aggregator or a pipeline on the CPU in `inference_mode`.

    `threads` is how many threads torch takes, None for its own choice.
    """

    def __init__(self, module: NetVLAD | Aggregator | Pipeline | Heads, *, threads: int | None = None) -> None:
        outputs = (DESCRIPTOR,)
        if isinstance(module, Pipeline):
            super().__init__("torch", module.head.spec, inputs=(IMAGES,), outputs=outputs, dtype=np.dtype(np.uint8))
        elif isinstance(module, Heads):
            super().__init__("torch", module.spec, inputs=module.spec.inputs, outputs=module.spec.outputs)
        elif isinstance(module, Aggregator):
            super().__init__("torch", module.spec, inputs=module.spec.inputs, outputs=outputs)
        else:
            super().__init__("torch", module.spec, inputs=(FEATURES,), optional_inputs=(MASK,), outputs=outputs)
        self.module = module.eval()
        if threads is not None:
            torch.set_num_threads(threads)

    def _run(self, feeds: Arrays) -> Arrays:
        given = [torch.from_numpy(feeds[name]) for name in (*self.inputs, *self.optional_inputs) if name in feeds]
        with torch.inference_mode():
            results = self.module(*given)
        tensors = results if isinstance(results, tuple) else (results,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}
