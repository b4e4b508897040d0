"""Several new files get their names together: a process that is killed in between leaves the rest to the next one.

The new files are complete under temporary names in the folder of their targets. `commit` writes down which of them
becomes which in the folder's journal, and then renames them. Whoever finds a journal waits for the process that holds
its lock, and finishes what a dead one began: so a reader sees all the old files or all the new ones, and two processes
that write into one folder come one after the other. The lock goes with the process, and the journal with the last name.
"""

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from netvlad_deploy.support.locks import left_behind, lock, stands

NAME = ".netvlad-deploy.journal"
_TEMPORARY = r"\.{target}\.[0-9a-f]{{16}}\.tmp"


def temporary_name(target: str) -> str:
    """Return a name for a new file before it has that of its target."""
    return f".{target}.{secrets.token_hex(8)}.tmp"


def commit(folder: Path, moves: Mapping[str, str], *, force: bool) -> None:
    """Give temporary files of a folder the names of their targets, or remove them; `moves` has both as plain names.

    Once the journal is written only an error of the disk stops that: Ctrl-C is raised when all is done.

    Raises: FileExistsError for a target that exists, unless `force`; OSError if the folder cannot be written.
    """
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, folder, moves)
        journal = _begin(folder)
        undo.callback(os.close, journal)
        undo.callback(_remove, folder, [NAME])
        _check(folder, moves, force=force)
        _sweep(folder, moves)
        if len(moves) > 1:  # one name is given at once or not at all
            os.write(journal, json.dumps(moves).encode())
            os.fsync(journal)
            _flush(folder)
        undo.pop_all()
    try:
        _rename(folder, moves)
    except KeyboardInterrupt:
        _rename(folder, moves)
        raise
    except OSError:
        _remove(folder, moves)
        raise
    finally:
        if not any((folder / temporary).exists() for temporary in moves):
            _flush(folder)
            _remove(folder, [NAME])
        os.close(journal)


def finish(folder: Path) -> None:
    """Finish what a killed process began in a folder, or wait until a living one is done.

    Raises: OSError if that is not possible; PermissionError for the journal of another user, whom nothing is done for.
    """
    try:
        journal = _open(folder, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if stands(folder / NAME, journal):
            _rename(folder, _moves(journal))
            _remove(folder, [NAME])
    finally:
        os.close(journal)


def _begin(folder: Path) -> int:
    """Return the folder's new journal, empty and locked, after finishing an older one."""
    while True:
        finish(folder)
        try:
            journal = _open(folder, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            continue
        if stands(folder / NAME, journal):
            return journal
        os.close(journal)  # before it was locked another process took it for one that was left behind, empty


def _open(folder: Path, flags: int) -> int:
    """Return the open journal, once it is locked.

    Raises: OSError if it cannot be opened; PermissionError if others may have written it, or keep its lock for ever.
    """
    journal = os.open(folder / NAME, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, journal)
        status = os.fstat(journal)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError("it is of another user, whose command was cut off there")
        lock(journal)
        undo.pop_all()
    return journal


def _moves(journal: int) -> dict[str, str]:
    """Return what is to be renamed: nothing, if the process was killed before the journal was complete."""
    try:
        moves = json.loads(os.pread(journal, os.fstat(journal).st_size, 0))
    except (ValueError, RecursionError):
        return {}
    plain = isinstance(moves, dict) and all(
        isinstance(target, str) and "/" not in temporary + target and _is_temporary(temporary, target)
        for temporary, target in moves.items()
    )
    return moves if plain else {}


def _is_temporary(name: str, target: str) -> bool:
    return target not in ("", ".", "..") and bool(re.fullmatch(_TEMPORARY.format(target=re.escape(target)), name))


def _rename(folder: Path, moves: Mapping[str, str]) -> None:
    """Rename what is not yet renamed."""
    for temporary, target in moves.items():
        with contextlib.suppress(FileNotFoundError):
            (folder / temporary).replace(folder / target)


def _sweep(folder: Path, moves: Mapping[str, str]) -> None:
    """Remove temporary files of the same targets that a killed process left: those that nobody has locked.

    The journal is empty and ours, so nobody will finish them.
    """
    for path in folder.iterdir():
        if path.name in moves or not any(_is_temporary(path.name, target) for target in moves.values()):
            continue
        with contextlib.suppress(OSError), left_behind(path):
            path.unlink()


def _remove(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


def _check(folder: Path, moves: Mapping[str, str], *, force: bool) -> None:
    """Raise OSError if a temporary file is gone, or a target has come to exist that is not to be replaced."""
    for temporary, target in moves.items():
        (folder / temporary).stat()
        if not force and (folder / target).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder / target))


def _flush(folder: Path) -> None:
    """Flush a folder's names to the disk, where the file system can."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
