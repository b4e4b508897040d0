"""Artifacts on disk, each with a sidecar that proves what it is.

Beside `m.onnx` stands `m.onnx.json`: hashes of the file, of its parent and of the oracle's reference file, the
layer's spec, and what a runner must know without parsing the file. The sidecar also carries the hash of its own
canonical text. That finds damage and mix-ups; it is no signature, and someone who rewrites both files passes.
"""

import hashlib
import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from netvlad_deploy.build_options import BuildOptions
from netvlad_deploy.errors import ArtifactError
from netvlad_deploy.files import Staging, sha256_file
from netvlad_deploy.formats import no_artifact
from netvlad_deploy.images import IMAGES, AnyProfile, ImageInput, ImageProfile, Resize
from netvlad_deploy.projection import Projection
from netvlad_deploy.shapes import AxisRange, Profile
from netvlad_deploy.spec import FEATURES, MASK, FeatureRange, NetVLADSpec

SCHEMA = "netvlad-deploy/artifact/4"
REFERENCE_SUFFIX = ".reference.npz"


@dataclass(frozen=True, kw_only=True)
class FileReference:
    """Another file by its content and by its path from the artifact's folder (a checkpoint: by its name alone)."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What every artifact records.

    `parent` is the file it was made from, None for a seeded initialisation; `images` is what a pipeline does with
    images, None for a head, which takes local descriptors.
    """

    path: Path
    sha256: str = ""
    size_bytes: int = 0
    spec: NetVLADSpec
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: Mapping[str, str]
    range: FeatureRange
    warnings: tuple[str, ...] = ()
    origin: str
    parent: FileReference | None
    reference: FileReference
    preprocessing: str
    images: ImageInput | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference_path(self) -> Path:
        """Return where the oracle's parameters stand."""
        return self.path.parent / self.reference.name

    @property
    def usual_profile(self) -> AnyProfile:
        """Return the optimization profile that it is built for where none is asked for."""
        return Profile() if self.images is None else self.images.usual_profile

    def input_shapes(self, profile: AnyProfile) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Return the smallest, usual and largest shape of every input under an optimization profile."""
        tails = {FEATURES: (self.spec.feature_size,), MASK: (), IMAGES: (3,)}
        return {name: tuple((*shape, *tails[name]) for shape in profile.shapes) for name in self.inputs}


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact(Artifact):
    """An exported ONNX graph; `external_data` is the file of its weights where they are too many for one file."""

    opset: int
    external_data: FileReference | None = None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of an engine: its name, kind and the dtypes of what it reads and writes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BuildFigures:
    """What the builder said of the engine; None where this TensorRT does not say.

    `host_bytes` is the most memory that the process of the build has taken from the host.
    """

    build_ms: float
    host_bytes: int
    activation_bytes: int | None
    weight_bytes: int | None
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """The GPU an engine was built on: its name, its compute capability as `8.7`, and the driver's CUDA version."""

    name: str
    compute_capability: str
    driver: str


@dataclass(frozen=True, kw_only=True)
class EngineArtifact(Artifact):
    """A built TensorRT engine.

    `flags` are the builder's by name; `gpu` is None where it was built without one; `machine` is what it was built on;
    `targets` are the architectures that a TensorRT-RTX engine is for.
    """

    options: BuildOptions
    flags: tuple[str, ...]
    gpu: Gpu | None
    machine: Mapping[str, str]
    targets: tuple[str, ...]
    figures: BuildFigures

    @property
    def flavor(self) -> str:
        """Return the flavor of TensorRT that built it and runs it."""
        return self.options.flavor

    @property
    def profiles(self) -> tuple[AnyProfile, ...]:
        """Return the optimization profiles."""
        return self.options.profiles

    @property
    def rebuild_command(self) -> str:
        """Return the command that builds this engine again, where it stands."""
        parent = self.path.parent / self.parent.name if self.parent else "MODEL.onnx"
        words = ["netvlad-deploy", "build", str(parent), "-o", str(self.path), *self.options.arguments, "--force"]
        return shlex.join(words)


ArtifactType = TypeVar("ArtifactType", bound=Artifact)


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of `path` stands."""
    return path.with_name(path.name + ".json")


def log_path(path: Path) -> Path:
    """Return where the build log of the engine `path` stands."""
    return path.with_name(path.name + ".log")


def reference_path(path: Path) -> Path:
    """Return where `export` writes the oracle's parameters for the ONNX file `path`."""
    return path.with_name(path.stem + REFERENCE_SUFFIX)


def external_path(path: Path) -> Path:
    """Return where `export` writes the weights that are too many for the ONNX file `path`."""
    return path.with_name(path.name + ".data")


def stage_artifact(
    staging: Staging, artifact: ArtifactType, content: bytes | Iterable[bytes | memoryview]
) -> ArtifactType:
    """Stage an artifact's file, whole or in parts, and its sidecar; return the artifact with its hash and size."""
    digest, size_bytes = hashlib.sha256(), 0
    with staging.open(artifact.path) as stream:
        for part in (content,) if isinstance(content, bytes) else content:
            stream.write(part)
            digest.update(part)
            size_bytes += len(part)
    artifact = replace(artifact, sha256=digest.hexdigest(), size_bytes=size_bytes)
    staging.write(sidecar_path(artifact.path), _sidecar_text(artifact).encode())
    return artifact


def load_artifact(path: Path | str, *, expect_sha256: str | None = None) -> OnnxArtifact | EngineArtifact:
    """Read an artifact through its sidecar, after proving that neither was damaged or swapped.

    `expect_sha256` is the file's hash from a source you trust, such as a signature: a sidecar proves no origin.

    Raises: ArtifactError naming what differs.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is {'not a file' if path.exists() else 'missing'}")
    if not sidecar_path(path).exists() and (what := no_artifact(path)):
        raise ArtifactError(f"{path} is {what}")
    record = _read_sidecar(sidecar_path(path))
    kinds: dict[str, type[OnnxArtifact | EngineArtifact]] = {"onnx": OnnxArtifact, "engine": EngineArtifact}
    kind = kinds.get(record.pop("kind", ""))
    other = f"{sidecar_path(path)} has fields of another version: export or build again"
    if kind is None or set(record) != {item.name for item in fields(kind)} - {"path"}:
        raise ArtifactError(other)
    try:
        artifact = kind(path=path, **_from_json(record))
    except (KeyError, TypeError) as error:
        raise ArtifactError(other) from error
    found = sha256_file(path)
    if found != artifact.sha256:
        cure = artifact.rebuild_command if isinstance(artifact, EngineArtifact) else "export it again"
        raise ArtifactError(f"{path} has SHA-256 {found[:12]}, its sidecar says {artifact.sha256[:12]}: {cure}")
    if expect_sha256 is not None and found != expect_sha256.lower():
        raise ArtifactError(f"{path} has SHA-256 {found}, expected {expect_sha256}: it is another file, do not use it")
    if isinstance(artifact, OnnxArtifact) and artifact.external_data is not None:
        check_file(path.parent, artifact.external_data, cure="export it again")
    return artifact


def check_file(folder: Path, reference: FileReference, *, cure: str = "export and build again") -> Path:
    """Return the path of a file that an artifact refers to, after comparing its content; `cure` says what to do else.

    Raises: ArtifactError if it is missing or another file now.
    """
    path = folder / reference.name
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: keep it beside the artifact, or export again")
    found = sha256_file(path)
    if found != reference.sha256:
        raise ArtifactError(
            f"{path} has SHA-256 {found[:12]}, the artifact was made with {reference.sha256[:12]}: it is stale, {cure}"
        )
    return path


def _sidecar_text(artifact: Artifact) -> str:
    record = asdict(artifact)
    del record["path"]
    record["schema"] = SCHEMA
    record["kind"] = "onnx" if isinstance(artifact, OnnxArtifact) else "engine"
    record["sidecar_sha256"] = _record_hash(record)
    return _canonical_text(record)


def _canonical_text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, sort_keys=True) + "\n"


def _record_hash(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        record = json.loads(text)
        canonical = _canonical_text(record)
        claimed = record.pop("sidecar_sha256")
        schema = record["schema"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: an artifact needs the sidecar it was written with") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a sidecar: export or build again") from error
    if _record_hash(record) != claimed or text != canonical:
        raise ArtifactError(f"{path} was changed after it was written: export or build again")
    if schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {schema}, expected {SCHEMA}: export or build again")
    del record["schema"]
    return dict(record)


def _from_json(record: dict[str, Any]) -> dict[str, Any]:
    """Turn a sidecar's JSON values into the types of the dataclass fields."""
    spec = dict(record["spec"])
    spec["normalization"] = tuple(spec["normalization"])
    spec["projection"] = Projection(**spec["projection"]) if spec["projection"] else None
    typed = dict(record, spec=NetVLADSpec(**spec), reference=FileReference(**record["reference"]))
    typed["parent"] = FileReference(**record["parent"]) if record["parent"] else None
    typed["range"] = FeatureRange(**record["range"])
    if record.get("external_data"):
        typed["external_data"] = FileReference(**record["external_data"])
    if record["images"] is not None:
        images = record["images"]
        size = images["resize"]["size"] and tuple(images["resize"]["size"])
        typed["images"] = ImageInput(
            mean=tuple(images["mean"]), std=tuple(images["std"]), resize=Resize(**dict(images["resize"], size=size))
        )
    for name in {"inputs", "outputs", "warnings", "flags", "targets"} & set(record):
        typed[name] = tuple(record[name])
    if "options" in record:
        kind = Profile if record["images"] is None else ImageProfile
        profiles = tuple(
            kind(**{axis: AxisRange(**bounds) for axis, bounds in profile.items()})
            for profile in record["options"]["profiles"]
        )
        capabilities = tuple(record["options"]["compute_capabilities"])
        typed["options"] = BuildOptions(**dict(record["options"], profiles=profiles, compute_capabilities=capabilities))
        typed["gpu"] = Gpu(**record["gpu"]) if record["gpu"] else None
        kernels = [
            Kernel(**dict(kernel, inputs=tuple(kernel["inputs"]), outputs=tuple(kernel["outputs"])))
            for kernel in record["figures"]["kernels"]
        ]
        typed["figures"] = BuildFigures(**dict(record["figures"], kernels=tuple(kernels)))
    return typed
