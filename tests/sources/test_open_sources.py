"""Folders, files, patterns and lists come as one stream of items, which a part of can be opened again."""

import errno
import io
import os
import sys
from pathlib import Path

import pytest

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.sources.open_sources import open_sources
from netvlad_deploy.sources.source import MAX_ENCODED_BYTES
from netvlad_deploy.spec.items import Item, Skipped


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory with a few files called as images, whose content is their name."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "walk/b.jpg",
        "walk/a/2.jpg",
        "walk/a/1.jpg",
        "walk/a.png",
        "walk/.h.jpg",
        "walk/n.txt",
        "other/a.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def names(*texts: str, listing: str | None = None) -> list[str]:
    return [one.name if isinstance(one, Item) else str(one) for one in open_sources(texts, listing=listing).items()]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["walk"], ["a.png", "a/1.jpg", "a/2.jpg", "b.jpg"]),
        (["walk/b.jpg", "walk/a"], ["b.jpg", "1.jpg", "2.jpg"]),
        (["walk/*.jpg"], ["b.jpg"]),
        (["walk/*"], ["a/1.jpg", "a/2.jpg", "a.png", "b.jpg"]),
        (["w*/[a-z]/?.jpg"], ["walk/a/1.jpg", "walk/a/2.jpg"]),
        (["**/*.png"], ["other/a.png", "walk/a.png"]),
        (["walk/**"], ["a.png", "a/1.jpg", "a/2.jpg", "b.jpg"]),
        (["walk/**/1.jpg"], ["a/1.jpg"]),
    ],
)
def test_folders_files_and_patterns(photos: Path, texts: list[str], expected: list[str]) -> None:
    got = names(*texts)
    assert [name for name in got if "n.txt" not in name] == expected


def test_a_name_with_a_wildcard_in_it_is_a_name(photos: Path) -> None:
    (photos / "x[1]").mkdir()
    (photos / "x[1]" / "a.jpg").touch()
    assert names("x[1]") == ["a.jpg"]


def test_a_part_of_the_items_is_opened_in_another_process_s_source(photos: Path) -> None:
    """What is loaded are the bytes of the file, and a load may run when the source is long done."""
    items = [one for one in open_sources(["walk", "other/*"]).items() if isinstance(one, Item)]
    part = items[1:3] + items[4:]
    loads = list(open_sources(["walk", "other/*"]).open(part))
    assert [item for item, _ in loads] == part
    assert [load() for _, load in loads] == [b"walk/a/1.jpg", b"walk/a/2.jpg", b"other/a.png"]
    assert (items[0].size_bytes, items[0].modified_ns) == (10, (photos / "walk/a.png").stat().st_mtime_ns)
    (photos / "walk/a/1.jpg").unlink()
    with pytest.raises(InputError, match="unreadable: No such file or directory"):
        loads[0][1]()


def test_a_list_has_one_path_on_each_line(photos: Path) -> None:
    (photos / "list.txt").write_bytes(b"walk/b.jpg\r\n\nwalk/zzz.jpg\nwalk/n.txt\nother\n./walk/a/1.jpg")
    assert names("walk/a", listing="list.txt") == [
        "1.jpg",
        "2.jpg",
        "walk/b.jpg",
        "walk/zzz.jpg: missing (line 3 of list.txt)",
        next(str(one) for one in open_sources(["walk/n.txt"]).items()),
        "other/a.png",
        "walk/a/1.jpg",
    ]


def test_a_list_comes_from_standard_input(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(os.fsencode(f"walk/b.jpg\n{photos}/walk/a.png\n"))))
    source = open_sources([], listing="-")
    next(iter(source.items()))  # as a comparison with a plan does, which stops where they differ
    for _ in range(2):
        assert [one.name for one in source.items() if isinstance(one, Item)] == ["walk/b.jpg", f"{photos}/walk/a.png"]


def test_what_may_not_be_looked_at_is_said_to_be_unreadable(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that it cannot be written; played, since root reads everything."""

    def closed(path: Path) -> bool:
        if path.parent.name == "walk" and path.name in ("metadata.yaml", "b.jpg"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return path.exists()

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_file", closed)
        with pytest.raises(InputError, match=r"walk/b\.jpg cannot be read: Permission denied"):
            names("walk/b.jpg")
        assert names("walk/a", "other") == ["1.jpg", "2.jpg", "a.png"]
        with pytest.raises(InputError, match=r"walk/b\.jpg cannot be read"):  # after all that stands before it
            names("walk")


def test_the_mark_of_utf_8_is_no_part_of_a_path(photos: Path) -> None:
    (photos / "list.txt").write_bytes(b"\xef\xbb\xbfwalk/b.jpg\r\n")
    assert names(listing="list.txt") == ["walk/b.jpg"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"walk/b.jpg\0walk/a.png\0", "list.txt, line 1 has a NUL: write one path on each line"),
        (b"\n" + b"x" * 5000, "list.txt, line 2 has more than 4095 bytes"),
    ],
)
def test_a_list_that_is_none_is_refused(photos: Path, content: bytes, words: str) -> None:
    (photos / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=words):
        names(listing="list.txt")


@pytest.mark.parametrize(
    ("texts", "error", "words"),
    [
        ([], UsageError, "nothing to embed: name folders or files"),
        (["nothing"], InputError, "nothing does not exist"),
        (["walk/*.gif"], InputError, r"walk/\*\.gif fits no file"),
        (["**/a/**"], UsageError, r"has \*\* twice"),
        (["x.npy"], UsageError, "x.npy holds local descriptors, not images: export the head with --input features"),
    ],
)
def test_what_cannot_be_taken_is_refused(photos: Path, texts: list[str], error: type[Exception], words: str) -> None:
    (photos / "x.npy").touch()
    with pytest.raises(error, match=words):
        names(*texts)


def test_a_list_that_is_missing_is_refused(photos: Path) -> None:
    with pytest.raises(InputError, match=r"list\.txt is missing"):
        names(listing="list.txt")


def test_images_are_no_features(photos: Path) -> None:
    with pytest.raises(UsageError, match="holds images, not local descriptors: export with --input images"):
        list(open_sources(["walk/b.jpg"], features=True).items())
    assert list(open_sources(["walk"], features=True).items()) == []


def test_a_column_or_a_topic_of_no_input_is_refused(photos: Path) -> None:
    """The option was typed for a file that is not among the inputs."""
    for source, words in (
        (open_sources(["walk"], column="jpeg"), "no input is a Parquet file that could have the column jpeg: leave it"),
        (open_sources(["walk"], topic="/camera"), "no input is a ROS bag that could have the topic /camera: leave it"),
        (open_sources(["walk"], topic="/camera", features=True), "no input is a ROS bag"),
    ):
        with pytest.raises(UsageError, match=words):
            list(source.items())


def test_a_file_without_end_is_not_read(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(photos / "walk" / "pipe.jpg")
    pipe = [one for one in open_sources(["walk"]).items() if isinstance(one, Skipped)]
    assert [one.detail for one in pipe] == ["not a file"]
    monkeypatch.setattr("netvlad_deploy.sources.source.MAX_ENCODED_BYTES", 5)
    source = open_sources(["walk/b.jpg"])
    ((_, load),) = source.open(one for one in source.items() if isinstance(one, Item))
    with pytest.raises(InputError, match="it has over 5 bytes"):
        load()
    assert MAX_ENCODED_BYTES > 5


def test_a_folder_is_walked_while_its_items_are_taken(photos: Path) -> None:
    """Nothing below a folder is looked at before its turn: a file that comes meanwhile is found."""
    items = open_sources(["walk"]).items()
    first = next(items)
    (photos / "walk" / "a" / "3.jpg").touch()
    assert [one.name for one in (first, *items) if isinstance(one, Item)] == [
        "a.png", "a/1.jpg", "a/2.jpg", "a/3.jpg", "b.jpg",
    ]  # fmt: skip
