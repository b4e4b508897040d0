"""Sources and files of descriptors: the memory that they take does not grow with the number of items."""

from collections.abc import Iterator
from pathlib import Path

from netvlad_deploy.sources.image_folders import IMAGE_SUFFIXES
from tools.bar import MIB, Bar, printed

FEW, MANY, IN_A_FOLDER = 4_000, 40_000, 1_000
MOST_GROWTH_MIB = 8
ROWS, SIZE, BLOCK = 10_000, 2_048, 512
MOST_READING_MIB, MOST_WRITING_MIB = 64, 96

LISTED = """
import sys
from netvlad_deploy.sources.open_sources import open_sources
from netvlad_deploy.support.machine import peak_memory_bytes
items = open_sources([sys.argv[1]]).items()
count = sum(1 for item, _ in zip(items, range(int(sys.argv[2]))))
print(count, peak_memory_bytes())
"""
WRITTEN = """
import sys
from pathlib import Path
import numpy as np
from netvlad_deploy.descriptors.header import DescriptorHeader
from netvlad_deploy.descriptors.open_files import open_writer, read_descriptors
from netvlad_deploy.support.machine import peak_memory_bytes
made = {"artifact": "m.onnx", "sha256": "0" * 64, "precision": "fp32", "spec": {}, "images": None}
target, count, size, block = Path(sys.argv[1]), *map(int, sys.argv[2:])
header = DescriptorHeader(**made, descriptor_size=size, dtype="float32")
values = np.ones((block, size), np.float32)
for rows in (block, count):
    with open_writer(target, header, rows, force=True) as writer:
        for start in range(0, rows, block):
            names = [f"walk/{number:08}.jpg" for number in range(start, min(rows, start + block))]
            writer.write(names, values[: len(names)])
    print(peak_memory_bytes())
"""
READ = """
import sys
from pathlib import Path
from netvlad_deploy.descriptors.open_files import read_descriptors
from netvlad_deploy.support.machine import peak_memory_bytes
blocks = read_descriptors(Path(sys.argv[1])).blocks(int(sys.argv[2]))
next(blocks)
print(peak_memory_bytes())
rest = sum(len(names) for names, _ in blocks)
print(peak_memory_bytes())
"""


def listing(folder: Path) -> Iterator[Bar]:
    """A tree of many empty files is listed; that a file is empty shows only when it is read."""
    for number in range(MANY):
        path = folder / "walks" / f"{number // IN_A_FOLDER:04}" / f"{number:06}{IMAGE_SUFFIXES[0]}"
        if not number % IN_A_FOLDER:
            path.parent.mkdir(parents=True)
        path.touch()
    (few, before), (many, after) = (printed(LISTED, folder / "walks", count) for count in (FEW, MANY + 1))
    grown = (after - before) / MIB
    yield Bar(
        f"listing {MANY:,} images takes at most {MOST_GROWTH_MIB} MiB more than {FEW:,}",
        f"{grown:.1f} MiB more",
        (few, many) == (FEW, MANY) and grown <= MOST_GROWTH_MIB,
    )


def files(folder: Path) -> Iterator[Bar]:
    """Descriptors are written and read in every format."""
    for suffix in (".npz", ".npy", ".h5", ".parquet"):
        few, many = printed(WRITTEN, folder / f"x{suffix}", ROWS, SIZE, BLOCK)
        first, last = printed(READ, folder / f"x{suffix}", BLOCK)
        what = f"{ROWS:,} descriptors of {SIZE:,} values in {suffix} ({ROWS * SIZE * 4 / MIB:.0f} MiB)"
        text = f"{(many - few) / MIB:.0f} MiB, {(last - first) / MIB:.0f} MiB"
        yield Bar(
            f"{what}: writing all of them takes at most {MOST_WRITING_MIB} MiB more than a block, reading at most "
            f"{MOST_READING_MIB} MiB",
            text,
            (many - few) / MIB <= MOST_WRITING_MIB and (last - first) / MIB <= MOST_READING_MIB,
        )
        (folder / f"x{suffix}").unlink()


FIGURES = (listing, files)
