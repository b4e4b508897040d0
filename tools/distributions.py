"""Build the wheel and the sdist of this checkout, the same bytes in any folder: `python -m tools.distributions FOLDER`.

Git says what belongs in them. Times, owners, modes and the order of files are the same each time; the time is
SOURCE_DATE_EPOCH, by default that of the last commit. Other versions of Python, zlib or setuptools may give others.
"""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROOT_FILES = ("pyproject.toml", "README.md", "LICENSE")


def tracked() -> list[str]:
    """Return the files that make the distributions, as git knows them: those of the package, and three beside it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "netvlad_deploy", *ROOT_FILES], cwd=ROOT, capture_output=True, check=True
    )
    return sorted(name.decode() for name in listed.stdout.split(b"\0") if name)


def epoch() -> int:
    """Return the time of all files, in seconds since 1970."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return int(given or subprocess.check_output(["git", "log", "-1", "--format=%ct"], cwd=ROOT))


def build(target: Path, seconds: int) -> list[Path]:
    """Write both into the folder, and return their paths."""
    with tempfile.TemporaryDirectory() as name:
        source, built = Path(name) / "source", Path(name) / "built"
        for file in tracked():
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, source / file)
            (source / file).chmod(0o644)
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(built), str(source)]
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(seconds), "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, umask=0o022, check=False)
        if done.returncode:
            raise SystemExit(f"the build failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        target.mkdir(parents=True, exist_ok=True)
        files = []
        for path in sorted(built.iterdir()):
            content = path.read_bytes()
            files.append(target / path.name)
            files[-1].write_bytes(repacked(content, seconds) if path.suffix == ".gz" else content)
    return files


def repacked(content: bytes, seconds: int) -> bytes:
    """Return a gzipped tar archive with its files in order of their names, of nobody, and of one time."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as old,
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=seconds) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda each: each.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime = member.type, member.size, seconds
            plain.mode = 0o755 if member.isdir() else 0o644
            new.addfile(plain, old.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def main(folder: str = "dist") -> None:
    """Print the hash and the path of each file."""
    for path in build(Path(folder), epoch()):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
