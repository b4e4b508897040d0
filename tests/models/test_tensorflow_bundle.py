"""TensorFlow's checkpoints: what is read of those that the format describes, and what is refused."""

import logging
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.crc32c import crc32c
from netvlad_deploy.models.tensorflow_table import read_table
from netvlad_deploy.models.weights_file import read_tensors
from netvlad_deploy.support.arrays import Array
from tests.command import Command, error_of
from tests.models import bundles
from tests.models.bundles import NUMBERS, block, entry, header, table, text, write_bundle

pytestmark = pytest.mark.export

VARIABLES: dict[str, Array] = {
    f"scope/layer_{number}/kernel": np.random.default_rng(number).standard_normal((3, number + 1)).astype(np.float32)
    for number in range(40)
}


def written(folder: Path, *entries: tuple[str, bytes], data: bytes = bytes(64), shards: int = 1) -> Path:
    """Write an index of these entries beside one shard."""
    named = [
        (b"", header(shards)),
        *((name.encode("utf-8", "surrogateescape"), value) for name, value in sorted(entries)),
    ]
    (folder / f"m.data-00000-of-{shards:05d}").write_bytes(data)
    (folder / "m.index").write_bytes(table([block(named)]))
    return folder / "m.index"


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 2049, 3 * 2048, 7 * 2048 + 5])
def test_the_checksum_is_that_of_the_definition(size: int) -> None:
    content = np.random.default_rng(size).bytes(size)
    assert crc32c(content) == bundles.crc32c(content)
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("shards", [1, 3])
def test_every_variable_of_every_shard_and_block_is_there(tmp_path: Path, shards: int) -> None:
    tensors = read_tensors(write_bundle(tmp_path, "model.ckpt-12", VARIABLES, shards=shards))
    assert list(tensors) == [name.replace("/", ".") for name in sorted(VARIABLES)]
    for name, array in VARIABLES.items():
        assert np.array_equal(tensors[name.replace("/", ".")].numpy(), array), name


@pytest.mark.parametrize("dtype", sorted(NUMBERS))
def test_every_type_of_real_numbers_is_read(tmp_path: Path, dtype: str) -> None:
    arrays = {
        "a": np.arange(6).reshape(2, 3).astype(dtype),
        "b": np.array(1).astype(dtype),
        "c": np.zeros((0, 2), dtype),
    }
    tensors = read_tensors(write_bundle(tmp_path, "m", arrays))
    for name, array in arrays.items():
        assert tensors[name].numpy().dtype == array.dtype
        assert np.array_equal(tensors[name].numpy(), array)


def test_bfloat16_is_read_as_torch_has_it(tmp_path: Path) -> None:
    value = torch.tensor([1.5, -2.0]).bfloat16()
    data = value.view(torch.int16).numpy().tobytes()
    path = written(tmp_path, ("a", entry(14, (2,), size=4, checksum=bundles.masked(data))), data=data)
    assert torch.equal(read_tensors(path)["a"], value)


def test_what_an_optimizer_keeps_text_and_averages_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernel = VARIABLES["scope/layer_3/kernel"]
    arrays = dict.fromkeys(("a/w", "a/w/Adam", "a/w/Adam_1", "b/Momentum", "a/w/ExponentialMovingAverage"), kernel)
    path = write_bundle(tmp_path, "m", arrays)
    with caplog.at_level(logging.INFO):
        assert list(read_tensors(path)) == ["a.w", "b.Momentum"]
    assert caplog.messages == [
        "assumed: the variables as trained, not their moving averages a/w/ExponentialMovingAverage",
        "m.index: left out: what is kept by an optimizer, such as a/w/Adam",
    ]
    caplog.clear()
    value = entry(1, (2, 8), size=64, checksum=bundles.masked(bytes(64)))
    objects = written(tmp_path, ("w/.ATTRIBUTES/VARIABLE_VALUE", value), ("_GRAPH", entry(7, (), size=9)))
    with caplog.at_level(logging.INFO):
        assert list(read_tensors(objects)) == ["w"]
    assert caplog.messages == ["m.index: left out: what is no real number, such as _GRAPH"]


def test_variables_saved_in_parts_are_refused_by_name(tmp_path: Path) -> None:
    path = written(
        tmp_path, ("a/w", entry(1, (8, 3), size=0, more=text(7, b""))), ("\0part\udc80", entry(1, (4, 3), size=48))
    )
    with pytest.raises(InputError, match=r"m\.index holds variables saved in parts: a/w: save them without"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (entry(1, (4, 5), size=64), r"says that a is torch.float32 \(4, 5\) in 64 bytes"),
        (entry(1, (1 << 20, 1 << 20), size=1 << 42), r"claims 4398046511104 bytes of variables, 64 are in"),
        (entry(1, (16,), size=64, offset=1), r"says that a ends at 65 of 64 bytes"),
        (entry(1, (16,), size=64, checksum=1), r"has another checksum for a than its bytes"),
        (entry(1, (16,), size=64, shard=1), r"needs m.data-00001-of-00001 beside it, which is not there"),
        (entry(1, (16, -1), size=64), r"an axis of a variable has the length 18446744073709551615"),
        (entry(1, (1,) * 17, size=4), r"an axis of a variable has the length 1"),
        (b"\x08\x01\x12\xff\x01", r"field 2 ends beyond its message"),
        (b"\x10\x01", r"field 2 of a variable is written in another way"),
        (b"\x0b", r"damaged or cut short \(ValueError: field 1 has the wire type 3"),
        (b"\x08" + b"\xff" * 10, r"a number is cut off"),
    ],
    ids=str,
)
def test_an_entry_that_does_not_fit_is_refused(tmp_path: Path, value: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        read_tensors(written(tmp_path, ("a", value)))
    assert str(refused.value).startswith(str(tmp_path / "m.index"))


def test_variables_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Fifty thousand variables of the same half gigabyte would fill any memory."""
    value = entry(1, (16,), size=64, checksum=bundles.masked(bytes(64)))
    with pytest.raises(InputError, match="claims 128 bytes of variables, 64 are in the files beside it"):
        read_tensors(written(tmp_path, ("a", value), ("b", value)))


def test_two_variables_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds two variables that are called a\.b"):
        read_tensors(write_bundle(tmp_path, "m", {"a/b": np.ones(2), "a.b": np.ones(2)}))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = write_bundle(tmp_path, "m", VARIABLES, shards=2)
    (tmp_path / "m.data-00001-of-00002").unlink()
    with pytest.raises(
        InputError, match=r"m\.index needs m\.data-00001-of-00002 beside it, which is not there: copy all"
    ):
        read_tensors(path)


def pairs(*keys: bytes) -> bytes:
    return block((key, b"") for key in keys)


def entries_of(content: bytes) -> bytes:
    """Return a block of these raw entries."""
    return content + struct.pack("<II", 0, 1)


SOUND = table([pairs(b"", b"a"), pairs(b"ab", b"b")])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (SOUND[:-1], "does not end as the index"),
        (SOUND[20:], "does not have its checksum|is expected"),
        (b"\1" + SOUND[1:], "the block at 0 does not have its checksum"),
        (SOUND[:40], "does not end as the index"),
        (table([pairs(b"", b"b"), pairs(b"a")]), "the key b'a' follows b'b'"),
        (table([pairs(b"", b"a", b"a")]), "the key b'a' follows b'a'"),
        (table([entries_of(b"\x05\x01\x00a")]), "claims 5 \\+ 1 bytes of key"),
        (table([entries_of(b"\x00\x01\x7fa")]), "claims 0 \\+ 1 bytes of key and 127 of value"),
        (table([entries_of(b"\x00\xff\x7f\x00" + bytes(16383))]), "claims 0 \\+ 16383 bytes of key"),
        (table([struct.pack("<I", 9)]), "9 places are expected in a block of 4 bytes"),
        (table([b"\0"]), "damaged or cut short"),
        (table([pairs(b"")], kind=1), "is compressed by Snappy, which TensorFlow has not done since 1.2"),
        (table([pairs(b"")], kind=2), "is compressed in the unknown way 2"),
        (bundles.trailed(b"") + bytes(40) + SOUND[-8:], "damaged or cut short"),
        (table([pairs(b"a")]), "damaged or cut short"),
        (table([block([(b"", header(5000))])]), "has 5000 shards, expected from 1 to 4096"),
        (table([block([(b"", header(1, endianness=1))])]), "was written on a big-endian machine"),
    ],
    ids=range(17),
)
def test_a_damaged_index_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "m.index").write_bytes(content)
    with pytest.raises(InputError, match=words) as refused:
        read_tensors(tmp_path / "m.index")
    assert str(refused.value).startswith(str(tmp_path / "m.index"))


def test_blocks_that_overlap_are_refused() -> None:
    """One block of a megabyte that is named a thousand times would be read a thousand times."""
    first = pairs(b"", b"a")
    place = bundles.varint(0) + bundles.varint(len(first))
    index = block([(b"0", place), (b"1", place)])
    start = len(bundles.trailed(first))
    handles = bundles.varint(0) + bundles.varint(0) + bundles.varint(start) + bundles.varint(len(index))
    content = bundles.trailed(first) + bundles.trailed(index) + handles.ljust(40, b"\0") + SOUND[-8:]
    with pytest.raises(ValueError, match="a block begins at 0, inside the one before it"):
        read_table(content)


def test_the_other_files_of_a_checkpoint_point_at_its_index(tmp_path: Path, command: Command) -> None:
    write_bundle(tmp_path, "model.ckpt-12", {"a": np.ones(3, np.float32)})
    (tmp_path / "model.ckpt-12.meta").write_bytes(b"\x0a\x01")
    for name in ("model.ckpt-12.data-00000-of-00001", "model.ckpt-12.meta"):
        result = command("export", tmp_path / name, "-o", tmp_path / "m.onnx")
        assert result.code == 65
        assert error_of(result.err).endswith(
            "is a part of a TensorFlow checkpoint: give model.ckpt-12.index, which stands beside it"
        )
    for verb in ("export", "inspect", "validate"):
        result = command(verb, tmp_path / "model.ckpt-12", *(["-o", tmp_path / "m.onnx"] if verb == "export" else []))
        assert result.code == 65
        assert "model.ckpt-12 is missing: the TensorFlow checkpoint of this name is model.ckpt-12.index" in result.err


def test_text_and_folders_under_the_name_of_an_index_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.index").write_text("See README")
    (tmp_path / "f.index").mkdir()
    for name, words in {"t": "is text, not weights", "f": "is not a file but a folder"}.items():
        with pytest.raises(InputError, match=words):
            read_tensors(tmp_path / f"{name}.index")
