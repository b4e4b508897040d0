"""Files written whole or not at all, and read by their content.

A result is written under temporary names beside its targets and renamed when all of it is complete, so that a killed
process, a full disk or Ctrl-C leaves what was there before.
"""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from netvlad_deploy.errors import ArtifactError, OutputError, UsageError
from netvlad_deploy.scratch import reserve


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
        self._handles: list[int] = []  # they hold the locks that say these files are no leftovers

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

    def add(self, target: Path, *, private: bool = False) -> Path:
        """Reserve a temporary file for `target`; a private one is for this user alone.

        Raises: UsageError if the target exists and `force` is off; OutputError if its folder cannot be written.
        """
        self.check(target)
        try:
            self._moves[target], handle = reserve(target.parent, f".{target.name}.", ".tmp")
            self._handles.append(handle)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(handle, 0o600 if private else 0o666 & ~umask)
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror or error}") from error
        return self._moves[target]

    @contextlib.contextmanager
    def open(self, target: Path, *, private: bool = False) -> Iterator[IO[bytes]]:
        """Open the temporary file of a new `target` for writing, and flush it to the disk."""
        with self.add(target, private=private).open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def write(self, target: Path, content: bytes, *, private: bool = False) -> None:
        """Write a whole file under its temporary name."""
        with self.open(target, private=private) as stream:
            stream.write(content)

    def sha256(self, target: Path) -> str:
        """Return the SHA-256 of a new file that is complete under its temporary name."""
        return sha256_file(self._moves[target])

    def commit(self) -> None:
        """Give every file its name, in the order they were added: the sidecar last."""
        for target, temporary in list(self._moves.items()):
            temporary.replace(target)
            del self._moves[target]

    def discard(self) -> None:
        """Remove whatever was not given its name, and let go of the rest."""
        for temporary in self._moves.values():
            temporary.unlink(missing_ok=True)
        while self._handles:
            os.close(self._handles.pop())


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
    for target in targets:
        Staging(force=force).check(target)


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write one text file whole or not at all."""
    with stage_files(force=force) as staging:
        staging.write(path, text.encode())


def read_private(path: Path) -> bytes:
    """Return the content of a file that holds code, nothing if it is not there.

    Raises: ArtifactError if it cannot be read, or somebody else could have written it.
    """
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise ArtifactError(f"{path} holds code, and others may have written it: remove it, it is made anew")
            return stream.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that several processes change: a sibling `.NAME.lock`, which stays.

    Raises: OutputError if the folder cannot be written.
    """
    try:
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"{path} cannot be locked: {error.strerror or error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # released by the kernel, whichever way the process ends
        yield
    finally:
        os.close(handle)
