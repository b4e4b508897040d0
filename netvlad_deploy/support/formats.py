"""The format of a file by its name and first bytes, and errors of third-party readers as one line.

Every verb asks here first, so that all of them say the same of a file. Only the standard library is needed.
"""

import contextlib
import lzma
import pickle
import re
import shlex
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from netvlad_deploy.errors import InputError, OutputError

INDEX_SUFFIX: Final = ".index"
"""Suffix of the index of a TensorFlow checkpoint, which names all that is beside it."""

HDF5_MAGIC: Final = b"\x89HDF\r\n\x1a\n"
KERAS_SUFFIXES: Final = (".h5", ".hdf5", ".keras")
"""Suffixes of Keras models: in HDF5, or of Keras 3 in a zip archive."""

KERAS_WITHOUT_NAMES: Final = (
    "of Keras 3 without the names of its weights, as .keras and .weights.h5 are: load the model with Keras, and save "
    "it with model.save('model.h5')"
)

CHECKPOINT_SUFFIXES: Final = (
    *(".safetensors", ".npz", ".mat", ".pt", ".pth", ".tar", ".ckpt", ".bin", ".pt2"),
    INDEX_SUFFIX,
    *KERAS_SUFFIXES,
)
"""Suffixes of files of weights, in lower case; `.tar` is for `.pth.tar`."""

READER_ERRORS: Final = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, lzma.LZMAError, pickle.PickleError, struct.error, tokenize.TokenError),
    *(zipfile.BadZipFile, zlib.error),
)
"""Errors that NumPy, torch and the standard library raise for damaged files."""

TAR_MAGIC_OFFSET: Final = 257
"""Position of `ustar` in a tar archive."""

_WEB_PAGE = "a web page that was saved in place of the file: open it to see what the server said, and download it again"
_IMAGE = "an image: give the file of the weights"
_SHARD_NAME: Final = re.compile(r"(?P<stem>.+)\.(data-\d{5}-of-\d{5}|meta)")
"""Name of a file that TensorFlow writes beside an index."""

_EXPORTED_PROGRAM = "a program of torch.export: save the state_dict of its module with torch.save"
_KINDS_BY_START: Final = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: run git lfs pull where it was cloned",
    b"MATLAB 7.3": "of MATLAB 7.3: save it with -v7",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"BZh": "compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "compressed by xz: unpack it first",
    b"%PDF": "a PDF document: give the file of the weights",
    b"\x89PNG": _IMAGE,
    b"\xff\xd8\xff": _IMAGE,
}
_KINDS_BY_MEMBER: Final = {
    "model.weights.h5": KERAS_WITHOUT_NAMES,
    "archive_format": _EXPORTED_PROGRAM,
    "models/model.json": _EXPORTED_PROGRAM,
    "serialized_exported_program.json": _EXPORTED_PROGRAM,
}
"""By the end of a member's name, the kind of the zip archive."""


def is_checkpoint(path: Path) -> bool:
    """Return True if a file's name is that of a checkpoint; reference files are checkpoints too.

    >>> is_checkpoint(Path("model_best.pth.tar")), is_checkpoint(Path("model.onnx"))
    (True, False)
    """
    return path.suffix.lower() in CHECKPOINT_SUFFIXES


def first_bytes(path: Path) -> bytes:
    """Return the first 512 bytes of a file, which show its format.

    Raises: InputError if it is missing, no file, or may not be read.
    """
    with reading(path), path.open("rb") as stream:
        return stream.read(512)


def foreign(path: Path) -> str:
    """Return the kind of a file that this package cannot read, with a remedy; empty for every other file.

    Raises: InputError if it is missing, no file, or may not be read.
    """
    start = first_bytes(path)
    if shard := _SHARD_NAME.fullmatch(path.name):
        return f"a part of a TensorFlow checkpoint: give {shard['stem']}{INDEX_SUFFIX}, which stands beside it"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return _WEB_PAGE
    for magic, kind in _KINDS_BY_START.items():
        if start.startswith(magic):
            return kind
    if start[TAR_MAGIC_OFFSET:].startswith(b"ustar"):
        return "an archive of tar: unpack it, and give the file of weights in it"
    if start.startswith(b"PK"):
        return next((kind for member, kind in _KINDS_BY_MEMBER.items() if _has_member(path, member)), "")
    if path.suffix.lower() in KERAS_SUFFIXES and start and not start.startswith(HDF5_MAGIC):
        return "no HDF5 file, which its name says it is: give the file that Keras saved"
    if path.suffix.lower() == ".onnx" or (start[:1] == b"\x08" and start[2:3] in (b"\x12", b"\x3a")):
        return (
            f"an ONNX file, whose sidecar {path.name}.json is missing; if other code wrote it, export the checkpoint "
            f"that it was made from, or take it over: {shlex.join(['netvlad-deploy', 'adopt', str(path)])}"
        )
    if is_checkpoint(path) and all(byte >= 0x20 or byte in b"\t\n\r\f" for byte in start):
        return "text, not weights: open it to see what it says" if start else "empty: fetch it again, or write it again"
    return ""


def no_artifact(path: Path) -> str:
    """Return the kind of a file that has no sidecar, with a remedy; empty if its kind is unknown.

    Raises: InputError if it is missing, no file, or may not be read.
    """
    if kind := foreign(path):
        return kind
    export = shlex.join(["netvlad-deploy", "export", str(path)])
    if first_bytes(path).startswith(b"PK") and is_torchscript(path):
        return f"a TorchScript archive, whose weights can be exported: {export}"
    if path.suffix.lower() == ".npy":
        return "a file of features: embed takes it beside an artifact"
    return f"a checkpoint, which must be exported first: {export}" if is_checkpoint(path) else ""


def is_torchscript(path: Path) -> bool:
    """Return True if a zip archive holds a TorchScript program beside its weights."""
    return _has_member(path, "constants.pkl")


def _has_member(path: Path, end: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(f"/{name}".endswith(f"/{end}") for name in archive.namelist())
    except READER_ERRORS:
        return False  # the archive is damaged: its reader will say so


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors that a third-party reader raises for a damaged file into an InputError of one line.

    Raises: InputError, also if the file is missing, no regular file, or may not be read.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path} is missing{index_of(path)}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {said(error)}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} is not a file but a {'folder' if stat.S_ISDIR(mode) else 'device'}: name a file")
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    except READER_ERRORS as error:
        raise InputError(
            f"{path} is damaged or cut short ({said(error)}): fetch it again, or write it again"
        ) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into an OutputError that names its file, or else this one."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{error.filename or path} cannot be written: {error.strerror or error}") from error


def index_of(path: Path) -> str:
    """Return a hint at the index of the TensorFlow checkpoint that a missing file names; empty if there is none."""
    index = path.with_name(path.name + INDEX_SUFFIX) if path.name else path
    return f": the TensorFlow checkpoint of this name is {index.name}, give that" if index.is_file() else ""


@contextlib.contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Put the file's name before the message of an InputError that does not begin with it.

    Raises: InputError.
    """
    try:
        yield
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: {error}") from error


def shown(text: str, most: int = 80) -> str:
    """Return the start of a text that a file holds, in one line.

    >>> shown("two  words", 5)
    'two w'
    """
    return " ".join(text.split())[:most]


def said(error: BaseException) -> str:
    """Return an error of other code in one short line.

    >>> said(KeyError("pool"))
    "KeyError: 'pool'"
    """
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
