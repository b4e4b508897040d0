"""A machine with a GPU and TensorRT, both doubles, and engines for it."""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from netvlad_deploy.artifact import EngineArtifact, FileReference
from netvlad_deploy.spec.build_options import RTX, TENSORRT, BuildFigures, BuildOptions, Gpu
from netvlad_deploy.spec.graph_options import FeatureRange
from netvlad_deploy.spec.layer import DESCRIPTOR, FEATURES, MASK, NetVLADSpec
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.tensorrt import cuda
from netvlad_deploy.tensorrt import loader as engine_loader
from netvlad_deploy.tensorrt.api import TensorRT
from tests.double.core import World
from tests.double.cuda import CudaDouble
from tests.double.runtime import binding, engine_bytes

SPEC = NetVLADSpec(num_clusters=2, feature_size=3)
PROFILES = tuple(Profile.parse(text) for text in ("1x1,2x5,4x9", "1x100,1x300,2x400"))
TENSOR_TYPES = {"float32": "FLOAT", "float16": "HALF", "bool": "BOOL"}
GPU = Gpu(name="Double GPU", compute_capability="8.7", driver="12.4")


@dataclass(frozen=True)
class Machine:
    """The doubles, and what TensorRT is called here."""

    world: World
    cuda: CudaDouble
    module: Any

    @property
    def flavor(self) -> str:
        """Return the flavor of the version."""
        return RTX if self.world.rtx else TENSORRT

    def engine(
        self,
        path: Path,
        *,
        masked: bool = False,
        half: bool = False,
        profiles: tuple[Profile, ...] = PROFILES,
        gpu: Gpu | None = GPU,
        targets: tuple[str, ...] | None = None,
        **options: Any,
    ) -> EngineArtifact:
        """Write an engine's file and return the artifact that a sidecar would give."""
        inputs = (FEATURES, MASK) if masked else (FEATURES,)
        number = "float16" if half else "float32"
        dtypes = {name: "bool" if name == MASK else number for name in (*inputs, DESCRIPTOR)}
        content = content_of(inputs, dtypes, profiles)
        path.write_bytes(content)
        return EngineArtifact(
            path=path,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            spec=SPEC,
            precision="fp16" if half else "fp32",
            inputs=inputs,
            outputs=(DESCRIPTOR,),
            dtypes=dtypes,
            range=FeatureRange(norm=1, largest=None, logit_slope=2, logit_step=2.0**-22),
            origin="m.pth",
            parent=FileReference(name="m.onnx", sha256=""),
            reference=FileReference(name="m.reference.npz", sha256=""),
            preprocessing="none",
            versions={self.flavor: self.module.__version__},
            options=BuildOptions(flavor=self.flavor, profiles=profiles, **options),
            flags=(),
            gpu=gpu,
            machine={"cores": "2"},
            targets=(("SM80", "SM87") if self.world.rtx else ()) if targets is None else targets,
            figures=BuildFigures(build_ms=1, host_bytes=2**20, activation_bytes=None, weight_bytes=None, kernels=()),
        )


def content_of(inputs: tuple[str, ...], dtypes: dict[str, str], profiles: tuple[Profile, ...]) -> bytes:
    """Return the bytes of an engine with these inputs, one descriptor, and these profiles."""
    shapes = {FEATURES: (-1, -1, SPEC.feature_size), MASK: (-1, -1), DESCRIPTOR: (-1, SPEC.descriptor_size)}
    modes = {name: "INPUT" if name in inputs else "OUTPUT" for name in dtypes}
    tensors = {name: (modes[name], TENSOR_TYPES[dtypes[name]], shapes[name]) for name in dtypes}
    tails = {FEATURES: (SPEC.feature_size,), MASK: ()}
    ranges = [{name: [(*shape, *tails[name]) for shape in profile.shapes] for name in inputs} for profile in profiles]
    return engine_bytes(tensors, ranges)


def install(monkeypatch: pytest.MonkeyPatch, version: str) -> Machine:
    """Put the doubles where the package looks for cuda-bindings and TensorRT."""
    world = World(version)
    gpu = CudaDouble(world)
    machine = Machine(world, gpu, binding(world, gpu))
    monkeypatch.setattr(cuda, "require", lambda *_, **__: gpu)
    opened = partial(TensorRT, module=machine.module)
    monkeypatch.setattr(engine_loader, "open_tensorrt", lambda flavor, **given: opened(flavor=flavor, **given))
    return machine
