"""Files written whole or not at all, and read by their content.

A result is written under temporary names beside its targets, which get their names together when all of it is
complete: a killed process, a full disk or Ctrl-C leaves all that was there before, or all that is new.
"""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from netvlad_deploy.errors import ArtifactError, OutputError, UsageError
from netvlad_deploy.support import journal
from netvlad_deploy.support.locks import hold, lock
from netvlad_deploy.support.scratch import scratch_folder

COPY_BYTES: Final = 1 << 20


@contextlib.contextmanager
def open_regular(path: Path, *, missing: str = "") -> Iterator[IO[bytes]]:
    """Open a file for reading that is one: a pipe or a device would never end.

    Raises: ArtifactError if it cannot be read, is something else, or is not there: `missing` says what that means.
    """
    try:
        with open(path, "rb", opener=_without_waiting) as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ArtifactError(f"{path} is no regular file: name a file")
            yield stream
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is missing{missing and ': '}{missing}") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


def _without_waiting(path: str, flags: int) -> int:
    """Open without waiting for whoever would write into a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def sha256_file(path: Path, *, missing: str = "") -> str:
    """Return the SHA-256 of a file as hex digits.

    Raises: ArtifactError if it cannot be read.
    """
    with open_regular(path, missing=missing) as stream:
        return _digest(stream)


def _digest(stream: IO[bytes], copy: IO[bytes] | None = None) -> str:
    """Return the SHA-256 of what a stream still holds, and write that into a copy, which is unbuffered."""
    digest = hashlib.sha256()
    while block := stream.read(COPY_BYTES):
        digest.update(block)
        if copy is not None:
            _write_scratch(copy, block)
    return digest.hexdigest()


def _write_scratch(stream: IO[bytes], block: bytes) -> None:
    """Write all of a block into an unbuffered file of the temporary folder: no error waits until it is closed.

    Raises: OutputError if the temporary folder does not take it.
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
    """Make a copy of a file that nobody else can change, under the same name in a folder of its own.

    For readers that open a file by its path: what they read has the SHA-256 that comes with the copy.

    Raises: ArtifactError if the file cannot be read; OutputError if the temporary folder cannot hold the copy.
    """
    with scratch_folder() as folder:
        copy = folder / path.name
        with open_regular(path, missing=missing) as stream, copy.open("xb", buffering=0) as target:
            sha256 = _digest(stream, target)
        yield copy, sha256


def check_suffix(target: Path, suffix: str) -> Path:
    """Return the target if its name ends as its content demands, which also keeps it from being its own source.

    Raises: UsageError if it does not.
    """
    if target.suffix != suffix:
        raise UsageError(f"{target} does not end in {suffix}: name the target {target.stem}{suffix}")
    return target


def check_apart(path: Path, others: Iterable[Path], role: str) -> None:
    """Raise UsageError if a file that has a role of its own is also another file of the same work."""
    if path.resolve() in {other.resolve() for other in others}:
        raise UsageError(f"{path} is read or written here, it cannot be the {role} too: name another file")


class Staging:
    """Files of one result, in one folder, written under temporary names beside their targets."""

    def __init__(self, *, force: bool) -> None:
        self.force = force
        self._moves: dict[Path, Path] = {}
        self._locks: list[int] = []

    @property
    def newest(self) -> Path | None:
        """Return the target that was added last and has not its name yet."""
        return next(reversed(self._moves), None)

    def check(self, target: Path) -> None:
        """Refuse a target that could not be written: worth asking before long work.

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
        """Reserve a temporary file for `target`; a private one is for this user alone.

        Raises: UsageError if the target exists and `force` is off; OutputError if it cannot be written.
        """
        self.check(target)
        if any(target.parent != other.parent for other in self._moves):
            raise OutputError(f"{target} cannot be written with files of another folder: a result stands in one")
        self._moves[target], handle = _create(target, 0o600 if private else 0o666)
        self._locks.append(handle)
        return self._moves[target]

    @contextlib.contextmanager
    def open(self, target: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
        """Open the temporary file of a new `target` for writing, and flush it to the disk."""
        with _open_flushed(self.add(target, private=private)) as stream:
            yield stream

    def write(self, target: Path, content: bytes, *, private: bool = False) -> None:
        """Write a whole file under its temporary name."""
        with self.open(target, private=private) as stream:
            stream.write(content)

    def write_parts(self, target: Path, parts: Iterable[bytes | memoryview]) -> tuple[str, int]:
        """Write a file part by part under its temporary name; return its SHA-256 and its size in bytes."""
        return write_hashed(self.add(target), parts)

    def sha256(self, target: Path) -> str:
        """Return the SHA-256 of a new file that is complete under its temporary name."""
        return sha256_file(self._moves[target])

    def commit(self) -> None:
        """Give every file its name, all of them or none: see `journal`.

        Raises: UsageError if a target has come to exist and `force` is off.
        """
        moves, self._moves = self._moves, {}
        if not moves:
            return
        names = {temporary.name: target.name for target, temporary in moves.items()}
        try:
            journal.commit(next(iter(moves)).parent, names, force=self.force)
        except FileExistsError as error:
            raise UsageError(f"{error.filename} exists already: choose another name or pass --force") from error

    def discard(self) -> None:
        """Remove whatever was not given its name, and let go of the rest."""
        for temporary in self._moves.values():
            temporary.unlink(missing_ok=True)
        while self._locks:
            os.close(self._locks.pop())


def _create(target: Path, mode: int = 0o600) -> tuple[Path, int]:
    """Make a temporary file for a target, locked while this process lives, with the permissions that a user chose.

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
    """Let a folder have all or none of what is being written into it, if a process that did that was killed.

    Raises: ArtifactError if that is not possible.
    """
    try:
        journal.finish(folder)
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(
            f"{folder / journal.NAME} is of a command that writes there, or was killed, and cannot be put right: "
            f"{reason}: remove it if no such command runs"
        ) from error


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
        name = error.filename or staging.newest or "output"
        raise OutputError(f"{name} cannot be written: {error.strerror or error}") from error
    finally:
        staging.discard()


def check_targets(*targets: Path, force: bool) -> None:
    """Refuse early what could not be written.

    Raises: as `Staging.check`.
    """
    with stage_files(force=force) as staging:
        for target in targets:
            staging.check(target)


def make_folder(folder: Path, targets: Iterable[Path], *, force: bool) -> None:
    """Make a folder for `targets`, and refuse early what could not be written.

    Raises: OutputError if there can be no such folder; UsageError if a target exists and `force` is off.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
    check_targets(*targets, force=force)


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write one text file whole or not at all."""
    with stage_files(force=force) as staging:
        staging.write(path, text.encode())


def read_private(path: Path) -> bytes:
    """Return the content of a file that holds code, nothing if it is not there.

    Raises: ArtifactError if it cannot be read, or somebody else could have written it.
    """
    if not path.exists():
        return b""
    with open_regular(path) as stream:
        check_private(path, os.fstat(stream.fileno()))
        return stream.read()


def check_private(path: Path, status: os.stat_result) -> None:
    """Raise ArtifactError if somebody else could have written a file or folder that holds code."""
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise ArtifactError(f"{path} holds code, and others may have written it: remove it, it is made anew")


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that several processes change: a sibling `.NAME.lock`, which stays.

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
    """Return a file's name without its suffixes: `model_best.pth.tar` becomes `model_best`."""
    return path.name.partition(".")[0] or path.name
