"""Artifacts on disk: files written whole or not at all, each with a sidecar that proves what it is.

Beside `m.onnx` stands `m.onnx.json`: hashes of the file, of its parent and of the oracle's reference file, the
layer's spec, and what a runner must know without parsing the file. The sidecar also carries the hash of its own
canonical text. That finds damage and mix-ups; it is no signature, and someone who rewrites both files passes.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Any, TypeVar

from netvlad_deploy.errors import ArtifactError, OutputError, UsageError
from netvlad_deploy.spec import AxisRange, FeatureRange, NetVLADSpec, Profile

SCHEMA = "netvlad-deploy/artifact/1"
REFERENCE_SUFFIX = ".reference.npz"


@dataclass(frozen=True, kw_only=True)
class FileReference:
    """Another file by its content and by its path from the artifact's folder (a checkpoint: by its name alone)."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """What every artifact records. `parent` is the file it was made from, None for a seeded initialisation."""

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
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference_path(self) -> Path:
        """Return where the oracle's parameters stand."""
        return self.path.parent / self.reference.name


@dataclass(frozen=True, kw_only=True)
class OnnxArtifact(Artifact):
    """An exported ONNX graph."""

    opset: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of an engine: its name, kind and the dtypes of what it reads and writes."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BuildFigures:
    """What the builder said of the engine; None where this TensorRT does not say."""

    build_ms: float
    activation_bytes: int | None
    weight_bytes: int | None
    kernels: tuple[Kernel, ...]


@dataclass(frozen=True, kw_only=True)
class EngineArtifact(Artifact):
    """A built TensorRT engine, for one flavor and the GPU architectures in `targets`."""

    flavor: str
    profile: Profile
    tf32: bool
    targets: tuple[str, ...]
    figures: BuildFigures


ArtifactType = TypeVar("ArtifactType", bound=Artifact)


def sidecar_path(path: Path) -> Path:
    """Return where the sidecar of `path` stands."""
    return path.with_name(path.name + ".json")


def reference_path(path: Path) -> Path:
    """Return where `export` writes the oracle's parameters for the ONNX file `path`."""
    return path.with_name(path.stem + REFERENCE_SUFFIX)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits.

    Raises: ArtifactError if it cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def check_suffix(target: Path, suffix: str) -> Path:
    """Return the target if its name ends as its content demands, which also keeps it from being its own source.

    Raises: UsageError if it does not.
    """
    if target.suffix != suffix:
        raise UsageError(f"{target} does not end in {suffix}: name the target {target.stem}{suffix}")
    return target


class Staging:
    """Files of one result, written under temporary names beside their targets."""

    def __init__(self, *, force: bool) -> None:
        self.force = force
        self._moves: dict[Path, Path] = {}

    def check(self, target: Path) -> None:
        """Refuse a target that could not be written: worth asking before long work.

        Raises: UsageError if it exists and `force` is off; OutputError if it is a folder, or its folder does not exist.
        """
        if target.is_dir():
            raise OutputError(f"{target} cannot be written: it is a folder, name a file")
        if target.exists() and not self.force:
            raise UsageError(f"{target} exists already: choose another name or pass --force")
        if not target.parent.is_dir():
            raise OutputError(f"{target} cannot be written: there is no folder {target.parent}")

    def add(self, target: Path) -> Path:
        """Reserve a temporary file for `target`.

        Raises: UsageError if the target exists and `force` is off; OutputError if its folder cannot be written.
        """
        self.check(target)
        try:
            handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
            self._moves[target] = Path(name)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(handle, 0o666 & ~umask)
            os.close(handle)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
        return self._moves[target]

    @contextlib.contextmanager
    def open(self, target: Path) -> Iterator[IO[bytes]]:
        """Open the temporary file of a new `target` for writing, and flush it to the disk."""
        with self.add(target).open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def write(self, target: Path, content: bytes) -> None:
        """Write a whole file under its temporary name."""
        with self.open(target) as stream:
            stream.write(content)

    def commit(self) -> None:
        """Give every file its name, in the order they were added: the sidecar last."""
        for target, temporary in list(self._moves.items()):
            temporary.replace(target)
            del self._moves[target]

    def discard(self) -> None:
        """Remove whatever was not given its name."""
        for temporary in self._moves.values():
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def stage_files(*, force: bool) -> Iterator[Staging]:
    """Write several files whole or not at all: earlier files stay until all the new ones are complete.

    Raises: UsageError if a target exists and `force` is off; OutputError if the disk refuses.
    """
    staging = Staging(force=force)
    try:
        yield staging
        staging.commit()
    except OSError as error:
        raise OutputError(f"{error.filename or 'output'} cannot be written: {error.strerror or error}") from error
    finally:
        staging.discard()


def make_folder(folder: Path, targets: Iterable[Path], *, force: bool) -> None:
    """Make a folder for `targets`, and refuse early what could not be written.

    Raises: OutputError if there can be no such folder; UsageError if a target exists and `force` is off.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    for target in targets:
        Staging(force=force).check(target)


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write one text file whole or not at all."""
    with stage_files(force=force) as staging:
        staging.write(path, text.encode())


def stage_artifact(staging: Staging, artifact: ArtifactType, content: bytes) -> ArtifactType:
    """Stage an artifact's file and sidecar; return the artifact with its hash and size."""
    artifact = replace(artifact, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
    staging.write(artifact.path, content)
    staging.write(sidecar_path(artifact.path), _sidecar_text(artifact).encode())
    return artifact


def load_artifact(path: Path | str) -> OnnxArtifact | EngineArtifact:
    """Read an artifact through its sidecar, after proving that neither was damaged or swapped.

    Raises: ArtifactError naming what differs.
    """
    path = Path(path)
    if not path.is_file():
        raise ArtifactError(f"{path} is not a file")
    record = _read_sidecar(sidecar_path(path))
    kinds: dict[str, type[OnnxArtifact | EngineArtifact]] = {"onnx": OnnxArtifact, "engine": EngineArtifact}
    kind = kinds.get(record.pop("kind", ""))
    if kind is None or set(record) != {item.name for item in fields(kind)} - {"path"}:
        raise ArtifactError(f"{sidecar_path(path)} has fields of another version: export or build again")
    found = sha256_file(path)
    if found != record["sha256"]:
        raise ArtifactError(
            f"{path} has SHA-256 {found[:12]}, its sidecar says {record['sha256'][:12]}: export or build again"
        )
    return kind(path=path, **_from_json(record))


def check_file(folder: Path, reference: FileReference) -> Path:
    """Return the path of a file that an artifact refers to, after comparing its content.

    Raises: ArtifactError if it is missing or another file now.
    """
    path = folder / reference.name
    if not path.is_file():
        raise ArtifactError(f"{path} is missing: keep it beside the artifact, or export again")
    found = sha256_file(path)
    if found != reference.sha256:
        raise ArtifactError(
            f"{path} has SHA-256 {found[:12]}, the artifact was made with {reference.sha256[:12]}: it is stale, "
            "export and build again"
        )
    return path


def _sidecar_text(artifact: Artifact) -> str:
    record = asdict(artifact)
    del record["path"]
    record["schema"] = SCHEMA
    record["kind"] = "onnx" if isinstance(artifact, OnnxArtifact) else "engine"
    record["sidecar_sha256"] = _record_hash(record)
    return json.dumps(record, indent=2, sort_keys=True) + "\n"


def _record_hash(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _read_sidecar(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        claimed = record.pop("sidecar_sha256")
        schema = record["schema"]
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing: an artifact needs the sidecar it was written with") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path} is not a sidecar: export or build again") from error
    if _record_hash(record) != claimed:
        raise ArtifactError(f"{path} was changed after it was written: export or build again")
    if schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {schema}, expected {SCHEMA}: export or build again")
    del record["schema"]
    return dict(record)


def _from_json(record: dict[str, Any]) -> dict[str, Any]:
    """Turn a sidecar's JSON values into the types of the dataclass fields."""
    spec = dict(record["spec"])
    spec["normalization"] = tuple(spec["normalization"])
    typed = dict(record, spec=NetVLADSpec(**spec), reference=FileReference(**record["reference"]))
    typed["parent"] = FileReference(**record["parent"]) if record["parent"] else None
    typed["range"] = FeatureRange(**record["range"])
    for name in {"inputs", "outputs", "warnings", "targets"} & set(record):
        typed[name] = tuple(record[name])
    if "profile" in record:
        typed["profile"] = Profile(**{axis: AxisRange(**bounds) for axis, bounds in record["profile"].items()})
        kernels = [
            Kernel(**dict(kernel, inputs=tuple(kernel["inputs"]), outputs=tuple(kernel["outputs"])))
            for kernel in record["figures"]["kernels"]
        ]
        typed["figures"] = BuildFigures(**dict(record["figures"], kernels=tuple(kernels)))
    return typed
