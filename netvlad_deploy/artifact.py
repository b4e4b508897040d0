"""Artifacts on disk, each with a sidecar that describes and identifies it.

Beside `m.onnx` stands `m.onnx.json`: hashes of the file, of its parent and of the oracle's reference file, the
layer's spec, and all that a runner must know without parsing the file. The sidecar also carries the hash of its own
canonical text. That finds damage and mix-ups; it is no signature, and someone who rewrites both files passes.
"""

import contextlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Final, TypeAlias, TypeVar

from netvlad_deploy.errors import ArtifactError
from netvlad_deploy.spec.build_options import BuildFigures, BuildOptions, Gpu
from netvlad_deploy.spec.graph_options import FeatureRange, HeadsRange
from netvlad_deploy.spec.images import IMAGES, AnyProfile, ImageInput, ImageProfile
from netvlad_deploy.spec.layer import (
    ASSIGNMENT_FEATURES,
    FEATURES,
    MASK,
    TOKEN,
    AnySpec,
    HeadsSpec,
    input_shape,
)
from netvlad_deploy.spec.layouts import LAYOUTS
from netvlad_deploy.spec.profiles import AxisRange, Profile
from netvlad_deploy.spec.tensors import ImageTensors, tensors_of
from netvlad_deploy.support.external_data import check_names
from netvlad_deploy.support.files import Staging, finish_writing, private_copy, read_bounded, sha256_file
from netvlad_deploy.support.formats import index_of, no_artifact
from netvlad_deploy.support.records import from_record
from netvlad_deploy.support.sidecar import MAX_SIDECAR_BYTES, REMEDY, seal, unseal
from netvlad_deploy.support.verified_file import VerifiedFile

REFERENCE_SUFFIX = ".reference.npz"
REMAKE: Final = "export and build again"
KEEP: Final = "keep it beside the artifact, or export again"


@dataclass(frozen=True, kw_only=True)
class FileReference:
    """Another file by its content and by its path from the artifact's folder (a checkpoint: by its name alone)."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Artifact(VerifiedFile):
    """The record of an artifact: its file, its layer, and all that a runner must know without parsing the file.

    `parent` is the file it was made from, None for a seeded initialisation; `images` is the preparation of a pipeline's
    images, None for a head, which takes local descriptors.
    """

    path: Path
    sha256: str = ""
    size_bytes: int = 0
    spec: AnySpec
    precision: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: Mapping[str, str]
    range: FeatureRange | HeadsRange
    warnings: tuple[str, ...] = ()
    origin: str
    parent: FileReference | None
    reference: FileReference
    preprocessing: str
    images: ImageInput | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known: tuple[str, ...] = (FEATURES, MASK, TOKEN, ASSIGNMENT_FEATURES, IMAGES)
        if isinstance(self.spec, HeadsSpec):
            known = self.spec.inputs
        elif self.images is not None:
            known = (*self.inputs[:1], IMAGES)
        if set(self.inputs) - set(known) or not self.inputs:
            raise ArtifactError(f"inputs are {', '.join(self.inputs)}, expected {', '.join(known[:-1])} or {IMAGES}")
        if untyped := {*self.inputs, *self.outputs} - set(self.dtypes):
            raise ArtifactError(f"{', '.join(sorted(untyped))} has no dtype")
        if self.images is not None and self.dtypes[self.inputs[0]] != LAYOUTS[self.images.layout].dtype:
            raise ArtifactError(f"{self.inputs[0]} has another dtype than images of the layout {self.images.layout}")

    @property
    def reference_path(self) -> Path:
        """Return the path of the file with the oracle's parameters."""
        return self.path.parent / self.reference.name

    @property
    def tensors(self) -> ImageTensors | None:
        """Return the tensors of a pipeline whose images or names are not this package's own, None for any other."""
        return tensors_of(self.images, self.inputs, self.outputs)

    @property
    def usual_profile(self) -> AnyProfile:
        """Return the optimization profile that it is built for where none is asked for."""
        if self.images is not None:
            return self.images.usual_profile.with_fixed(self.spec.fixed_lengths)
        usual, least = Profile(), self.spec.least_features
        lengths = AxisRange(min=least, opt=max(least, usual.num_features.opt), max=max(least, usual.num_features.max))
        return replace(usual, num_features=lengths).with_fixed(self.spec.fixed_lengths)

    def input_shapes(self, profile: AnyProfile) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Return the smallest, usual and largest shape of every input under an optimization profile."""
        if self.images is not None:
            layout = LAYOUTS[self.images.layout]
            return {self.inputs[0]: tuple(layout.shape(shape) for shape in profile.shapes)}
        return {name: tuple(input_shape(self.spec, name, shape) for shape in profile.shapes) for name in self.inputs}


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact(Artifact):
    """An exported ONNX graph; `external_data` is the file of its weights where they are too many for one file."""

    opset: int
    external_data: FileReference | None = None

    _weights: ClassVar[Path | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        name = "data" if self.external_data is None else self.external_data.name
        if name != Path(name).name or name in ("", ".."):
            raise ArtifactError(f"external data {name} is no name of a file beside the graph")

    def content(self) -> bytes:
        """Return the bytes of the file, whose hash is this artifact's, and which name no file but its own.

        Which external data belongs to a graph stands in the graph, with its hash: so a hash that is expected of the
        graph is one of the weights, too.

        Raises: ArtifactError if the file cannot be read, is another one now, or names other external data.
        """
        content = super().content()
        try:
            check_names(content, None if self.external_data is None else asdict(self.external_data))
        except ValueError as error:
            raise ArtifactError(f"{self.path} does not fit its sidecar ({error}): {self.cure}") from error
        if self.external_data is not None and (path := self.path.parent / self.external_data.name).is_symlink():
            raise ArtifactError(f"{path} is a link: put the file itself beside its graph")
        return content

    def check_weights(self) -> None:
        """Compare the external data with the graph, which names it, and with its hash; nothing of it is held.

        Raises: as `content`; ArtifactError if the data is missing, or other data now.
        """
        if self.external_data is not None:
            self.content()
            check_file(self.path.parent, self.external_data, cure=self.cure)

    @contextlib.contextmanager
    def weights_folder(self) -> Iterator[Path | None]:
        """Yield a folder with a private copy of the external data, and nothing else; None if there is no such data.

        Raises: ArtifactError if the data is missing, or other data now.
        """
        if self.external_data is None:
            yield None
        elif self.kept is None:
            with copied(self.path.parent, self.external_data, cure=self.cure) as copy:
                yield copy.parent
        else:
            if self._weights is None:
                copy = self.kept.enter_context(copied(self.path.parent, self.external_data, cure=self.cure))
                self.__dict__["_weights"] = copy.parent
                self.kept.callback(self.__dict__.pop, "_weights")
            yield self._weights


@dataclass(frozen=True, kw_only=True)
class EngineArtifact(Artifact):
    """A built TensorRT engine.

    `flags` are the builder's by name; `gpu` is None where it was built without one; `machine` describes the builder's;
    `targets` are the architectures that a TensorRT-RTX engine is for.
    """

    options: BuildOptions
    flags: tuple[str, ...]
    gpu: Gpu | None
    machine: Mapping[str, str]
    targets: tuple[str, ...]
    figures: BuildFigures

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = Profile if self.images is None else ImageProfile
        if not self.profiles or not all(isinstance(profile, kind) for profile in self.profiles):
            raise ArtifactError(f"it has no profiles, or not those of {self.inputs[0]}")
        if self.flavor not in self.versions:
            raise ArtifactError(f"it does not say which version of {self.flavor} built it")

    @property
    def flavor(self) -> str:
        """Return the flavor of TensorRT that built it and runs it."""
        return self.options.flavor

    @property
    def profiles(self) -> tuple[AnyProfile, ...]:
        """Return the optimization profiles."""
        return self.options.profiles

    @property
    def cure(self) -> str:
        """Return the command that builds this engine again, where it stands."""
        parent = self.path.parent / self.parent.name if self.parent else "MODEL.onnx"
        words = ["netvlad-deploy", "build", str(parent), "-o", str(self.path), *self.options.arguments, "--force"]
        return shlex.join(words)


AnyArtifact: TypeAlias = OnnxArtifact | EngineArtifact
ArtifactType = TypeVar("ArtifactType", bound=Artifact)


def sidecar_path(path: Path) -> Path:
    """Return the path of the sidecar of `path`."""
    return path.with_name(path.name + ".json")


def log_path(path: Path) -> Path:
    """Return the path of the build log of the engine `path`."""
    return path.with_name(path.name + ".log")


def reference_path(path: Path) -> Path:
    """Return the path at which `export` writes the oracle's parameters for the ONNX file `path`."""
    return path.with_name(path.stem + REFERENCE_SUFFIX)


def external_path(path: Path) -> Path:
    """Return the path at which `export` writes the weights that are too many for the ONNX file `path`."""
    return path.with_name(path.name + ".data")


def stage_artifact(
    staging: Staging, artifact: ArtifactType, content: bytes | Iterable[bytes | memoryview]
) -> ArtifactType:
    """Stage an artifact's file, whole or in parts, and its sidecar; return the artifact with its hash and size."""
    sha256, size_bytes = staging.write(artifact.path, content)
    artifact = replace(artifact, sha256=sha256, size_bytes=size_bytes)
    stage_sidecar(staging, artifact)
    return artifact


def stage_sidecar(staging: Staging, artifact: Artifact) -> None:
    """Stage the sidecar of an artifact whose file is staged."""
    record = asdict(artifact)
    del record["path"]
    kind = "onnx" if isinstance(artifact, OnnxArtifact) else "engine"
    staging.write(sidecar_path(artifact.path), seal({**record, "kind": kind}))


def load_artifact(path: Path | str, *, expect_sha256: str | None = None, hold: bool = False) -> AnyArtifact:
    """Read an artifact through its sidecar, after proving that neither was damaged or swapped.

    `expect_sha256` is the file's hash from a source you trust, such as a signature: a sidecar proves no origin. With
    `hold` the artifact keeps the bytes that were hashed until `Artifact.content` gives them to whoever runs them, and
    external data is hashed when it is opened; else the file is read again to be run, and compared with this hash.

    Raises: ArtifactError naming the difference.

    >>> from netvlad_deploy import NetVLAD, export_onnx
    >>> exported = export_onnx(NetVLAD(cluster_size=4, feature_size=8).eval(), "head.onnx")
    >>> loaded = load_artifact("head.onnx", expect_sha256=exported.sha256)
    >>> loaded.spec.descriptor_size, loaded.precision, loaded.inputs
    (32, 'fp32', ('features',))
    """
    path = Path(path)
    for _ in range(100):  # others may replace it meanwhile
        finish_writing(path.parent)
        if not path.is_file():
            raise ArtifactError(f"{path} is {'not a file' if path.exists() else 'missing' + index_of(path)}")
        if not sidecar_path(path).exists() and (kind := no_artifact(path)):
            raise ArtifactError(f"{path} is {kind}")
        sidecar = _read_sidecar(path)
        try:
            return _proven(path, sidecar, expect_sha256, hold=hold)
        except ArtifactError:
            finish_writing(path.parent)
            if _read_sidecar(path) == sidecar:
                raise  # else both were replaced while they were compared
    raise ArtifactError(f"{path} is replaced again and again: wait until that ends")


def _proven(path: Path, sidecar: bytes, expect_sha256: str | None, *, hold: bool) -> AnyArtifact:
    """Return the artifact of a sidecar, after comparing its files with their hashes."""
    artifact = _parse_sidecar(sidecar_path(path), sidecar, path)
    external = isinstance(artifact, OnnxArtifact) and artifact.external_data is not None
    if hold or external:
        artifact.hold()
    else:
        artifact.check()
    if expect_sha256 is not None and artifact.sha256 != expect_sha256.lower():
        raise ArtifactError(
            f"{path} has SHA-256 {artifact.sha256}, expected {expect_sha256}: it is another file, do not use it"
        )
    if isinstance(artifact, OnnxArtifact) and not hold:
        artifact.check_weights()
    return artifact


def check_file(folder: Path, reference: FileReference, *, cure: str = REMAKE, found: str | None = None) -> None:
    """Compare the content of a file that an artifact refers to; `cure` is the remedy if it is another.

    `found` is its SHA-256 where somebody has read it already.

    Raises: ArtifactError if it is missing or another file now.
    """
    path = folder / reference.name
    found = found or sha256_file(path, missing=KEEP)
    if found != reference.sha256:
        made = f"the artifact was made with {reference.sha256[:12]}"
        raise ArtifactError(f"{path} has SHA-256 {found[:12]}, {made}: it is stale, {cure}")


@contextlib.contextmanager
def copied(folder: Path, reference: FileReference, *, cure: str = REMAKE) -> Iterator[Path]:
    """Yield a private copy of a file that an artifact refers to, for a reader that opens it by its path.

    Raises: ArtifactError if it is missing or another file now.
    """
    with private_copy(folder / reference.name, missing=KEEP) as (copy, found):
        check_file(folder, reference, cure=cure, found=found)
        yield copy


def _read_sidecar(path: Path) -> bytes:
    return read_bounded(
        sidecar_path(path), MAX_SIDECAR_BYTES, missing="an artifact needs the sidecar it was written with"
    )


def _parse_sidecar(sidecar: Path, content: bytes, path: Path) -> AnyArtifact:
    """Return the artifact `path` as its sidecar describes it."""
    kinds: dict[str, type[OnnxArtifact | EngineArtifact]] = {"onnx": OnnxArtifact, "engine": EngineArtifact}
    record = unseal(content, str(sidecar))
    kind = str(record.pop("kind", None))
    if kind not in kinds:
        raise ArtifactError(f"{sidecar} has fields of another version (kind {kind[:40]!r}): {REMEDY}")
    try:
        return from_record(kinds[kind], record, path=path)
    except ValueError as error:
        raise ArtifactError(f"{sidecar} has fields of another version ({error}): {REMEDY}") from error
