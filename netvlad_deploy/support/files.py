"""Reading files with their hash, and writing the files of a result all together or not at all.

The files of a result are written under temporary names beside their targets, and renamed together when all of them are
complete: a killed process, a full disk or Ctrl-C leaves all the old files or all the new ones.
"""

import contextlib
import hashlib
import logging
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from netvlad_deploy.errors import ArtifactError, OutputError, UsageError
from netvlad_deploy.support import journal
from netvlad_deploy.support.locks import hold, lock
from netvlad_deploy.support.scratch import scratch_folder

LOG = logging.getLogger(__name__)

HASH_BLOCK_BYTES: Final = 1 << 20


@contextlib.contextmanager
def open_regular(path: Path, *, missing: str = "") -> Iterator[IO[bytes]]:
    """Open a regular file for reading; a pipe or a device, which may never end, is refused.

    Raises: ArtifactError if it cannot be read, is no regular file, or is missing: `missing` is added to that message.
    """
    try:
        with _opened(path) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ArtifactError(f"{path} is no regular file: name a file")
            yield stream
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing{missing and ': '}{missing}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


def _opened(path: Path) -> IO[bytes]:
    """Open a file; a pipe, without waiting for a process that writes into it."""
    try:
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except ValueError as error:  # a NUL in its name, or half a surrogate pair
        raise ArtifactError(f"{path} cannot be read: {error}") from error


def sha256_file(path: Path, *, missing: str = "") -> str:
    """Return the SHA-256 of a file as hex digits.

    Raises: ArtifactError if it cannot be read.
    """
    with open_regular(path, missing=missing) as stream:
        return _digest(stream)


def _digest(stream: IO[bytes], copy: IO[bytes] | None = None) -> str:
    """Return the SHA-256 of the rest of a stream, which is also written into an unbuffered copy, if there is one."""
    digest = hashlib.sha256()
    while block := stream.read(HASH_BLOCK_BYTES):
        digest.update(block)
        if copy is not None:
            _write_scratch(copy, block)
    return digest.hexdigest()


def _write_scratch(stream: IO[bytes], block: bytes) -> None:
    """Write a whole block into an unbuffered file of the temporary folder, where every error shows at once.

    Raises: OutputError if the temporary folder is full or cannot be written.
    """
    rest = memoryview(block)
    try:
        while rest:
            rest = rest[stream.write(rest) :]
    except OSError as error:
        raise OutputError(f"{stream.name} cannot be written: {error.strerror or error}: set TMPDIR") from error


def read_bounded(path: Path, largest: int, *, missing: str = "") -> bytes:
    """Return the content of a file of at most `largest` bytes.

    Raises: ArtifactError if it cannot be read, or is larger.
    """
    with open_regular(path, missing=missing) as stream:
        content = stream.read(largest + 1)
    if len(content) > largest:
        raise ArtifactError(f"{path} has more than {largest} bytes: it is another file")
    return content


@contextlib.contextmanager
def private_copy(path: Path, *, missing: str = "") -> Iterator[tuple[Path, str]]:
    """Yield a copy of a file that no other user can change, and its SHA-256; the copy has the same name.

    It is for libraries that open a file by its path: the bytes that they read are the bytes that were hashed.

    Raises: ArtifactError if the file cannot be read; OutputError if the temporary folder cannot hold the copy.
    """
    with scratch_folder() as folder:
        copy = folder / path.name
        with open_regular(path, missing=missing) as stream, copy.open("xb", buffering=0) as target:
            sha256 = _digest(stream, target)
        yield copy, sha256


def check_suffix(target: Path, suffix: str) -> Path:
    """Return the target if its name has the suffix of its format; its source, of another format, is then another file.

    Raises: UsageError if the name has another suffix.

    >>> check_suffix(Path("model.onnx"), ".onnx").name
    'model.onnx'
    """
    if target.suffix != suffix:
        raise UsageError(f"{target} does not end in {suffix}: name the target {target.stem}{suffix}")
    return target


def check_apart(path: Path, others: Iterable[Path], role: str) -> None:
    """Raise UsageError if a path is also one of the other files that the same command reads or writes."""
    if path.resolve() in {other.resolve() for other in others}:
        raise UsageError(f"{path} is read or written here, it cannot be the {role} too: name another file")


class Staging:
    """The files of one result, written under temporary names in the folder of their targets.

    Each temporary file stays open and locked until the end, which tells another process that it is in use.
    """

    def __init__(self, *, force: bool) -> None:
        self.force = force
        self._moves: dict[Path, Path] = {}
        self._locks: list[int] = []

    def check(self, target: Path) -> None:
        """Refuse a target that could not be written; ask before long work.

        Raises: UsageError if it exists and `force` is off; OutputError if it is read-only or no file, or its folder
            cannot be written.
        """
        if target.is_dir():
            raise OutputError(f"{target} cannot be written: it is a folder, name a file")
        if target.exists() and not target.is_file():
            raise OutputError(f"{target} cannot be written: it is no regular file, name another")
        if target.exists() and not self.force:
            raise UsageError(f"{target} exists already: choose another name or pass --force")
        if target.exists() and not (target.stat().st_mode & 0o222 and os.access(target, os.W_OK)):
            raise OutputError(f"{target} cannot be written: it is read-only")
        if not target.parent.is_dir():
            raise OutputError(f"{target} cannot be written: there is no folder {target.parent}")
        temporary, handle = _create(target)
        temporary.unlink(missing_ok=True)
        os.close(handle)

    def add(self, target: Path, *, private: bool = False) -> Path:
        """Return a new temporary file for `target`; no other user can read a private one.

        Raises: UsageError if the target exists and `force` is off; OutputError if it cannot be written.
        """
        self.check(target)
        if any(target.parent != other.parent for other in self._moves):
            raise OutputError(f"{target} cannot be written with files of another folder: a result stands in one")
        self._moves[target], handle = _create(target, 0o600 if private else 0o666)
        self._locks.append(handle)
        return self._moves[target]

    def open(self, target: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a new temporary file for `target`; at the end of the block it is flushed to the disk."""
        return _open_flushed(self.add(target))

    def write(
        self, target: Path, content: bytes | Iterable[bytes | memoryview], *, private: bool = False
    ) -> tuple[str, int]:
        """Write a new file, whole or in parts, under a temporary name; return its SHA-256 and its size in bytes."""
        parts = (content,) if isinstance(content, bytes) else content
        return write_hashed(self.add(target, private=private), parts)

    def sha256(self, target: Path) -> str:
        """Return the SHA-256 of a new file, complete under its temporary name."""
        return sha256_file(self._moves[target])

    def commit(self) -> None:
        """Rename all files to their targets or none: see `journal`.

        Raises: UsageError if a target exists by now and `force` is off.
        """
        moves, self._moves = self._moves, {}
        if not moves:
            return
        names = {temporary.name: target.name for target, temporary in moves.items()}
        try:
            journal.commit(next(iter(moves)).parent, names, force=self.force)
        except FileExistsError as error:
            raise UsageError(f"{error.filename} exists already: choose another name or pass --force") from error
        LOG.debug("wrote %s", ", ".join(map(str, moves)))

    def discard(self) -> None:
        """Remove the files that were not renamed, and release the locks of all."""
        for temporary in self._moves.values():
            temporary.unlink(missing_ok=True)
        while self._locks:
            os.close(self._locks.pop())


def _create(target: Path, mode: int = 0o600) -> tuple[Path, int]:
    """Return a new temporary file for a target, and the handle that holds its lock; the user's umask applies to `mode`.

    Raises: OutputError if the folder cannot be written.
    """
    while True:
        temporary = target.with_name(journal.temporary_name(target.name))
        try:
            handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            if hold(temporary, handle):
                return temporary, handle
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _open_flushed(path: Path) -> Iterator[IO[bytes]]:
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


def write_hashed(path: Path, parts: Iterable[bytes | memoryview]) -> tuple[str, int]:
    """Write a file, flush it to the disk, and return its SHA-256 and its size in bytes."""
    digest, size_bytes = hashlib.sha256(), 0
    with _open_flushed(path) as stream:
        for part in parts:
            stream.write(part)
            digest.update(part)
            size_bytes += len(part)
    return digest.hexdigest(), size_bytes


def finish_writing(folder: Path) -> None:
    """Finish the renames of a process that was killed while it wrote a result into a folder: see `journal`.

    Raises: ArtifactError if that is not possible.
    """
    try:
        journal.finish(folder)
    except OSError as error:
        path, reason = folder / journal.JOURNAL_NAME, error.strerror or error
        raise ArtifactError(
            f"{path} is of a command that writes there, or was killed, and cannot be put right: {reason}: "
            "remove it if no such command runs"
        ) from error


@contextlib.contextmanager
def stage_files(*, force: bool) -> Iterator[Staging]:
    """Yield a `Staging` for several files, which are renamed together at the end of the block, or removed on an error.

    Raises: UsageError if a target exists and `force` is off; OutputError if the disk refuses.
    """
    staging = Staging(force=force)
    try:
        yield staging
        staging.commit()
    except OSError as error:
        name = error.filename or next(reversed(staging._moves), "output")  # the file that was written last
        raise OutputError(f"{name} cannot be written: {error.strerror or error}") from error
    finally:
        staging.discard()


def check_targets(*targets: Path, force: bool) -> None:
    """Refuse targets that could not be written, before long work.

    Raises: as `Staging.check`.
    """
    with stage_files(force=force) as staging:
        for target in targets:
            staging.check(target)


def make_folder(folder: Path, targets: Iterable[Path], *, force: bool) -> None:
    """Make a folder for `targets`, and refuse those that could not be written.

    Raises: OutputError if the folder cannot be made; UsageError if a target exists and `force` is off.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    check_targets(*targets, force=force)


def write_text(path: Path, text: str) -> None:
    """Write a text file, or write it anew, under a temporary name, and rename it when it is complete."""
    with stage_files(force=True) as staging:
        staging.write(path, text.encode())


def read_private(path: Path) -> bytes:
    """Return the content of a file that holds code, empty if there is no such file.

    Raises: ArtifactError if it cannot be read, or another user may have written it.
    """
    if not path.exists():
        return b""
    with open_regular(path) as stream:
        check_private(path, os.fstat(stream.fileno()))
        return stream.read()


def check_private(path: Path, status: os.stat_result) -> None:
    """Raise ArtifactError if another user may have written a file or folder that holds code."""
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ArtifactError(f"{path} holds code, and others may have written it: remove it, it is made anew")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that several processes change: the lock of its sibling `.NAME.lock`, which is kept.

    Raises: OutputError if the folder cannot be written, or the lock is a link.
    """
    beside = path.with_name(f".{path.name}.lock")
    try:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise OutputError(f"{path} cannot be locked with {beside}: {error.strerror or error}") from error
    try:
        lock(handle)
        yield
    finally:
        os.close(handle)


def stem_of(path: Path) -> str:
    """Return a file's name without its suffixes.

    >>> stem_of(Path("model_best.pth.tar"))
    'model_best'
    """
    return path.name.partition(".")[0] or path.name
