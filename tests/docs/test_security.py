"""What SECURITY.md claims of the code, where the code can be asked."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import netvlad_deploy
from netvlad_deploy.retrieval import decoding
from netvlad_deploy.spec.images import MAX_PIXELS
from netvlad_deploy.support.formats import CHECKPOINT_SUFFIXES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "SECURITY.md").read_text()
PACKAGE = Path(netvlad_deploy.__file__).parent

CALLS = {
    "pickle.load": {}, "pickle.loads": {}, "pickle.Unpickler": {}, "joblib.load": {}, "yaml.load": {},
    "eval": {}, "exec": {}, "os.system": {}, "os.popen": {}, "compile": {},
    "torch.load": {"weights_only": True},
    "torch.hub.load": {}, "torch.jit.load": {},
}  # fmt: skip
"""Calls that run what they read, and the arguments that keep one from it; without any, none may stand."""

NETWORK = {"socket", "urllib.request", "http.client", "requests", "httpx", "aiohttp", "ftplib", "smtplib"}

TALKING = ("fleet/", "serving/")
"""Rooms that talk to the machines of a Ray cluster, or answer for Triton, as the page says."""


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Return every node of the package's code that calls or imports, with its file."""
    wanted = (ast.Call, ast.Import, ast.ImportFrom)
    files = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    return [(file, node) for file, tree in files.items() for node in ast.walk(tree) if isinstance(node, wanted)]


def keywords(call: ast.Call) -> dict[str, object]:
    return {each.arg: each.value.value for each in call.keywords if each.arg and isinstance(each.value, ast.Constant)}


def dangers(file: str, node: ast.AST) -> Iterator[str]:
    """Yield what is wrong with a call."""
    if not isinstance(node, ast.Call):
        return
    name, given = ast.unparse(node.func), keywords(node)
    if name in CALLS and (not CALLS[name] or CALLS[name].items() - given.items()):
        yield f"{file}:{node.lineno} {name}"
    if given.get("shell") or given.get("allow_pickle") or given.get("trust_remote_code"):
        yield f"{file}:{node.lineno} {name} {given}"


def test_nothing_runs_what_a_file_holds() -> None:
    assert [found for file, node in nodes() for found in dangers(file, node)] == []


@pytest.mark.parametrize(
    "code",
    [
        "pickle.loads(b)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)",
        "run(c, shell=True)",
    ],
)
def test_a_danger_is_seen(code: str) -> None:
    assert list(dangers("planted", ast.parse(code, mode="eval").body))


def test_nothing_opens_a_connection() -> None:
    imported = {
        (file, name)
        for file, node in nodes()
        for name in (
            [each.name for each in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    elsewhere = {(file, name) for file, name in imported if not file.startswith(TALKING)}
    assert {(file, name) for file, name in elsewhere if name in NETWORK} == set()


def test_the_figures_and_formats_are_those_of_the_code() -> None:
    assert f"at most {MAX_PIXELS:,} pixels" in PAGE
    assert f"at most {decoding.MOST_PER_BYTE:,} for each byte" in PAGE
    assert f"{('', '', '', '', '', '', '', 'seven')[len(decoding.FORMATS)]} formats" in PAGE
    row = next(line for line in PAGE.splitlines() if line.startswith("| checkpoints:"))
    assert {*re.findall(r"`(\.[\w.]+)`", row)} >= {".pt", ".safetensors", ".npz", ".mat", ".h5", ".index"}
    assert set(re.findall(r"`(\.\w+)`", row)) <= set(CHECKPOINT_SUFFIXES)


def test_what_it_names_is_there() -> None:
    assert (PACKAGE / "models" / "unpickling.py").is_file()
    assert (ROOT / "tools" / "fuzz").is_dir()
    targets = re.findall(r"^([a-z][\w.-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", PAGE)) <= set(targets)
    assert "--expect-sha256" in (PACKAGE / "commands" / "flags.py").read_text()
