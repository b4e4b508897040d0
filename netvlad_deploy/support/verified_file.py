"""A file that is used only with the hash it is known by, and read once where several ask for it."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from netvlad_deploy.errors import ArtifactError
from netvlad_deploy.support.files import open_regular, sha256_file


class VerifiedFile:
    """Base of a frozen dataclass with the fields `path` and `sha256`.

    What it holds between calls stands beside the fields: no record and no comparison of two of them sees it.
    """

    path: Path
    sha256: str
    kept: ClassVar[contextlib.ExitStack | None] = None

    @property
    def cure(self) -> str:
        """Return the action to take where the file is another than it was."""
        return "export it again"

    def content(self) -> bytes:
        """Return the bytes of the file: those that were hashed before, where they are held, else they are read now.

        Raises: ArtifactError if the file cannot be read, or has another hash now.
        """
        held: bytes | None = self.__dict__.pop("_held", None)  # a large network must not stay beside its session
        content = self._read() if held is None else held
        if self.kept is not None:
            self.__dict__["_held"] = content
        return content

    def hold(self) -> None:
        """Read the file, compare its hash, and keep the bytes for `content`.

        Raises: as `content`.
        """
        self.__dict__["_held"] = self._read()

    def _read(self) -> bytes:
        with open_regular(self.path) as stream:
            content = stream.read()
        self.check_sha256(hashlib.sha256(content).hexdigest())
        return content

    def check(self) -> None:
        """Compare the hash of the file, which is read block by block and not held.

        Raises: as `content`.
        """
        self.check_sha256(sha256_file(self.path))

    def check_sha256(self, found: str) -> None:
        """Raise ArtifactError unless this is the hash of the file."""
        if found != self.sha256:
            said = f"its sidecar says {self.sha256[:12]}"
            raise ArtifactError(f"{self.path} has SHA-256 {found[:12]}, {said}: {self.cure}")

    def release(self) -> None:
        """Let go of the bytes: `content` reads the file again, and compares its hash again."""
        self.__dict__.pop("_held", None)

    @contextlib.contextmanager
    def keep(self) -> Iterator[None]:
        """Keep all that is read until the context ends, for several readers: otherwise the first one takes the bytes.

        One thread at a time may do so with one object.
        """
        with contextlib.ExitStack() as stack:
            self.__dict__["kept"] = stack
            stack.callback(self.release)
            stack.callback(self.__dict__.pop, "kept", None)
            yield
