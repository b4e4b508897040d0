"""The wheel and the sdist that are published: the same bytes from anywhere, with what git knows of the package."""

import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from tools import distributions
from tools.distributions import ROOT, ROOT_FILES, build, tracked

pytestmark = [pytest.mark.slow]

SECONDS = 1_700_000_000


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return build(tmp_path_factory.mktemp("dist"), SECONDS)


def test_another_checkout_gives_the_same_bytes(files: list[Path], tmp_path: Path) -> None:
    """In another folder, at another time, with other modes of its files and another umask."""
    listed, before = tracked(), os.umask(0o077)
    try:
        for name in listed:
            (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tmp_path / "there" / name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributions, "ROOT", tmp_path / "there")
            patch.setattr(distributions, "tracked", lambda: listed)
            again = build(tmp_path / "dist", SECONDS)
    finally:
        os.umask(before)
    for one, other in zip(files, again, strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes(), one.name


def test_they_hold_what_git_knows_of_the_package_and_no_test(files: list[Path]) -> None:
    wheel, sdist = files
    package = {name for name in tracked() if name not in ROOT_FILES}
    assert {"netvlad_deploy/py.typed", "netvlad_deploy/report/page.html"} < package
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == package
        assert {info.date_time[:3] for info in archive.infolist()} == {(2023, 11, 14)}
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
        assert {(member.uid, member.uname, member.mtime) for member in archive} == {(0, "", SECONDS)}
    assert {name for name in names if ".egg-info/" not in name} == package | {*ROOT_FILES, "PKG-INFO", "setup.cfg"}


def test_a_build_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[build-system\n")
    monkeypatch.setattr(distributions, "ROOT", tmp_path)
    monkeypatch.setattr(distributions, "tracked", lambda: ["pyproject.toml"])
    with pytest.raises(SystemExit, match="the build failed"):
        build(tmp_path / "dist", SECONDS)
    assert not (tmp_path / "dist").exists()
