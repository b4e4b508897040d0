"""Whether any of very many names comes twice, found in bounded memory."""

import sqlite3
from collections.abc import Sequence
from typing import Final

from netvlad_deploy.errors import OutputError

CACHE_KIB: Final = 16 << 10
"""Memory in which names are compared; beyond it SQLite keeps them in a file of the temporary folder."""


class UniqueNames:
    """The names that have come so far.

    >>> names = UniqueNames()
    >>> names.first_repeated(["a", "b"]), names.first_repeated(["c", "a"])
    (None, 1)
    >>> names.close()
    """

    def __init__(self) -> None:
        # A file without a name, once it outgrows its cache. One thread at a time uses it, not always the same.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for pragma in (f"cache_size=-{CACHE_KIB}", "journal_mode=OFF", "synchronous=OFF"):
            self._database.execute(f"PRAGMA {pragma}")
        self._database.execute("CREATE TABLE names (name BLOB PRIMARY KEY) WITHOUT ROWID")

    def first_repeated(self, names: Sequence[str]) -> int | None:
        """Remember names; return the place of the first that has come before, None if all are new.

        Many at once are faster than one by one. After a repeated name no more can be asked.

        Raises: OutputError if the temporary folder is full.
        """
        place = 0
        try:
            self._database.execute("BEGIN")
            for place, name in enumerate(names):  # noqa: B007 - it is returned
                self._database.execute("INSERT INTO names VALUES (?)", (name.encode(errors="surrogateescape"),))
            self._database.execute("COMMIT")
        except sqlite3.IntegrityError:
            return place
        except sqlite3.Error as error:
            raise OutputError(f"the names cannot be compared in the temporary folder: {error}: set TMPDIR") from error
        return None

    def close(self) -> None:
        """Forget all names."""
        self._database.close()
