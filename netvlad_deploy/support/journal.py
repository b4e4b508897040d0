"""Several new files get their names together: a process that is killed in between leaves the rest to the next one.

`commit` writes the list of renames into the folder's journal, renames, and removes the journal. A process that finds a
journal waits for the process that holds its lock, and finishes the renames of a dead one, whose lock the kernel has
released: so a reader sees all the old files or all the new ones, and two processes that write into one folder take
turns.
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

JOURNAL_NAME = ".netvlad-deploy.journal"
_TEMPORARY_NAME = r"\.{target}\.[0-9a-f]{{16}}\.tmp"


def temporary_name(target: str) -> str:
    """Return a new name, hidden and unique, for a file that will be renamed to its target."""
    return f".{target}.{secrets.token_hex(8)}.tmp"


def commit(folder: Path, moves: Mapping[str, str], *, force: bool) -> None:
    """Rename the temporary files of a folder to their targets, or remove all of them; `moves` maps name to name.

    Once the journal is written only an error of the disk stops the renames: Ctrl-C is raised after the last one.

    Raises: FileExistsError for a target that exists, unless `force`; OSError if the folder cannot be written.
    """
    # Until the journal is on the disk every failure removes the new files; after that every failure must go forward.
    with contextlib.ExitStack() as undo:
        undo.callback(_remove, folder, moves)
        journal = _begin(folder)
        undo.callback(os.close, journal)
        undo.callback(_remove, folder, [JOURNAL_NAME])
        _check(folder, moves, force=force)
        _sweep(folder, moves)
        if len(moves) > 1:  # a single rename is atomic by itself: its journal stays empty, and only holds the lock
            os.write(journal, json.dumps(moves).encode())
            os.fsync(journal)
            _flush(folder)
        undo.pop_all()
    try:
        _rename(folder, moves)
    except KeyboardInterrupt:
        _rename(folder, moves)  # the first call stopped somewhere: this one does the rest
        raise
    except OSError:
        _remove(folder, moves)
        raise
    finally:
        if not any((folder / temporary).exists() for temporary in moves):
            _flush(folder)  # before the journal goes: after a power cut the renames must be there, or it
            _remove(folder, [JOURNAL_NAME])
        os.close(journal)


def finish(folder: Path) -> None:
    """Finish the renames that a killed process began in a folder, or wait until a living process is done with its own.

    A folder that this user cannot search is left as it is: whoever opens a file in it says so.

    Raises: OSError if that is not possible; PermissionError for the journal of another user, which is left alone.
    """
    try:
        journal = _open(folder, os.O_RDWR)
    except FileNotFoundError:
        return
    except PermissionError:
        if os.access(folder, os.X_OK):
            raise
        return
    try:
        if stands(folder / JOURNAL_NAME, journal):  # its owner removed it while this process waited, if not
            _rename(folder, _moves(journal))
            _remove(folder, [JOURNAL_NAME])
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
        if stands(folder / JOURNAL_NAME, journal):
            return journal
        os.close(journal)  # another process found it before it was locked, and removed it as the one of a dead process


def _open(folder: Path, flags: int) -> int:
    """Return the handle of the journal, opened and locked.

    Raises: OSError if it cannot be opened; PermissionError if another user may have written it, or may hold its lock.
    """
    journal = os.open(folder / JOURNAL_NAME, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, journal)
        status = os.fstat(journal)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise PermissionError("it is of another user, whose command was cut off there")
        lock(journal)
        undo.pop_all()
    return journal


def _moves(journal: int) -> dict[str, str]:
    """Return the renames that a journal lists, none if it is incomplete: then no file was renamed yet."""
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
    return target not in ("", ".", "..") and bool(re.fullmatch(_TEMPORARY_NAME.format(target=re.escape(target)), name))


def _rename(folder: Path, moves: Mapping[str, str]) -> None:
    """Rename the files that are still under their temporary names."""
    for temporary, target in moves.items():
        with contextlib.suppress(FileNotFoundError):
            (folder / temporary).replace(folder / target)


def _sweep(folder: Path, moves: Mapping[str, str]) -> None:
    """Remove temporary files of the same targets that no process has locked: those of killed processes.

    This process holds the journal, which lists nothing yet, so no process will rename them.
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
    """Raise OSError if a temporary file is gone, or a target exists that must not be replaced."""
    for temporary, target in moves.items():
        (folder / temporary).stat()
        if not force and (folder / target).exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder / target))


def _flush(folder: Path) -> None:
    """Flush the names in a folder to the disk, if the file system can do that."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
