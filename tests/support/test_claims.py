"""Who holds a piece of work, as the file says whom it is locked by."""

import fcntl
import json
from pathlib import Path

import pytest

from netvlad_deploy.errors import InUseError
from netvlad_deploy.support.claims import claimed


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps({"pid": 7, "host": "a", "since": "noon"}), "process 7 on a since noon"),
        (json.dumps({"pid": 7, "host": "a\nb", "since": 3}), "process 7 on a b since 3"),
        (json.dumps({"pid": float("inf"), "host": "a", "since": ""}), "another process"),
        ("[" * 4096, "another process"),
        ("no JSON", "another process"),
    ],
)
def test_whoever_is_refused_learns_in_one_line_who_holds_the_work(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "claim"
    path.write_text(content)
    with path.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with pytest.raises(InUseError) as refused, claimed(path):
            pass
    assert str(refused.value) == f"{tmp_path} is in use by {said}: wait until it ends"
