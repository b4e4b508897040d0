"""Run an unfolded torch module as a runner, to compare with and to time against."""

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from netvlad_deploy.errors import MissingDependencyError, RunError
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.heads import Heads
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.runner import Runner
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK
from netvlad_deploy.support.arrays import Arrays


def check_compiler() -> None:
    """Raise MissingDependencyError if there is no C++ compiler for `torch.compile`.

    Source: torch._inductor.config, `cpp.cxx`: $CXX, or g++ (clang++ on macOS).
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise MissingDependencyError(
            f"torch.compile needs the C++ compiler {compiler}, which is not installed: install it, or set CXX"
        )


class TorchRunner(Runner):
    """Run a head, several of them, another aggregator or a pipeline on the CPU in `inference_mode`.

    `threads` is how many threads torch takes, None for its own choice. With `compiled`, `torch.compile` makes kernels
    of the module when a shape is first run, in its default mode, for which it needs a C++ compiler.

    Raises: MissingDependencyError if it is to be compiled and there is no compiler.
    """

    def __init__(
        self, module: NetVLAD | Aggregator | Pipeline | Heads, *, threads: int | None = None, compiled: bool = False
    ) -> None:
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
        self._compute: Callable[..., Any] = self.module
        if compiled:
            self.name = "torch-compile"
            check_compiler()
            self._compute = torch.compile(self.module)
        if threads is not None:
            torch.set_num_threads(threads)

    def _run(self, feeds: Arrays) -> Arrays:
        given = [torch.from_numpy(feeds[name]) for name in (*self.inputs, *self.optional_inputs) if name in feeds]
        try:
            with torch.inference_mode():
                results = self._compute(*given)
        except RuntimeError as error:
            if self._compute is self.module:
                raise
            raise RunError(f"torch.compile failed: {' '.join(str(error).split())[:300]}") from error
        tensors = results if isinstance(results, tuple) else (results,)
        return {name: tensor.numpy() for name, tensor in zip(self.outputs, tensors, strict=True)}
