"""The code of docs/index.md for PostgreSQL, as it stands there, against a server; and the limits on that page."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from netvlad_deploy.support.arrays import Float32
from tests.index.places import write

pytestmark = pytest.mark.postgres

PAGE = (Path(__file__).parents[2] / "docs" / "index.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# (\w+)\.py[^\n]*\n(.*?)```", PAGE, re.DOTALL))
FILL = BLOCKS["in_postgres"].partition('    connection.execute("CREATE INDEX')[0]
COUNT = 400


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    from tests.index.postgres import postgres

    with postgres() as socket:
        yield socket


@pytest.fixture
def folder(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder; the database has no tables, and the environment says where it is."""
    import psycopg

    for name, value in (("PGHOST", str(server)), ("PGUSER", "postgres"), ("PGDATABASE", "postgres")):
        monkeypatch.setenv(name, value)
    with psycopg.connect() as connection:
        connection.execute("DROP TABLE IF EXISTS places")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def walk(size: int, folder: Path) -> tuple[Float32, Float32]:
    """Write unit descriptors of places, and of queries near to them; return both."""
    random = np.random.default_rng(0)
    places = random.standard_normal((COUNT, size)).astype(np.float32)
    queries = places[:20] + 0.5 * random.standard_normal((20, size)).astype(np.float32)
    places, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (places, queries))
    write(folder / "photos.npz", places)
    write(folder / "queries.npz", queries, [f"q{number}" for number in range(20)])
    return places, queries


def run(code: str) -> dict[str, object]:
    values: dict[str, object] = {}
    exec(compile(code, "docs/index.md", "exec"), values)
    return values


def printed(out: str) -> dict[str, list[tuple[str, float]]]:
    """Return the names and the scores that a block prints, by its queries."""
    return {query: ast.literal_eval(rest) for query, _, rest in (line.partition(" ") for line in out.splitlines())}


def check(answers: dict[str, list[tuple[str, float]]], places: Float32, queries: Float32) -> None:
    cosines = queries.astype(np.float64) @ places.T.astype(np.float64)
    shared = []
    for number, found in enumerate(answers.values()):
        assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
        assert found[0][0] == f"walk/{number:05}.jpg"
        rows = [int(name[5:10]) for name, _ in found]
        assert [score for _, score in found] == pytest.approx(cosines[number][rows].tolist(), abs=1e-3)
        shared.append(len(set(rows) & set(np.argsort(-cosines[number])[:10].tolist())) / 10)
    assert len(answers) == len(queries)
    assert np.mean(shared) > 0.9


def test_up_to_4000_values_in_an_index_of_halfvec(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places, queries = walk(64, folder)
    run(BLOCKS["in_postgres"])
    check(printed(capsys.readouterr().out), places, queries)


def test_4096_values_by_their_signs_and_exactly(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places, queries = walk(4096, folder)
    run(FILL + BLOCKS["in_postgres_by_signs"])
    check(printed(capsys.readouterr().out), places, queries)


@pytest.mark.parametrize(("name", "size"), [("in_postgres", 64), ("in_postgres_by_signs", 4096)])
def test_a_search_goes_through_the_index(name: str, size: int, folder: Path) -> None:
    import psycopg

    walk(size, folder)
    code = BLOCKS[name] if name == "in_postgres" else FILL + BLOCKS[name]
    values = run(code)
    with psycopg.connect() as connection:
        connection.execute("SET enable_seqscan = off")
        query = {"query": values["text"](np.ones(size))}  # type: ignore[operator]
        plan = [row[0] for row in connection.execute(f"EXPLAIN {values['nearest']}", query).fetchall()]
    assert any("Index Scan using places_" in line for line in plan), plan


@pytest.mark.parametrize(
    ("kind", "most", "words"),
    [
        ("vector", 2000, "cannot have more than 2000 dimensions for hnsw index"),
        ("halfvec", 4000, "cannot have more than 4000 dimensions for hnsw index"),
    ],
)
def test_the_limits_of_an_index(kind: str, most: int, words: str, folder: Path) -> None:
    import psycopg

    with psycopg.connect() as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        connection.execute(f"CREATE TABLE places (a {kind}({most}), b {kind}({most + 1}))")
        for method in ("hnsw", "ivfflat"):
            connection.execute(f"CREATE INDEX ON places USING {method} (a {kind}_ip_ops)")
            with pytest.raises(psycopg.Error, match=words.replace("hnsw", method)), connection.transaction():
                connection.execute(f"CREATE INDEX ON places USING {method} (b {kind}_ip_ops)")
        with pytest.raises(psycopg.Error, match="cannot exceed 16000"), connection.transaction():
            connection.execute(f"CREATE TABLE others (a {kind}(16001))")
