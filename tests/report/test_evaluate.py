"""The report of an evaluation has every figure and every skipped file, and the picture shows misses first."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from netvlad_deploy.report import matches as picture
from netvlad_deploy.report.evaluate import (
    CandidateRecall,
    EvaluationReport,
    evaluation_lines,
    evaluation_page,
)
from netvlad_deploy.report.markdown_page import markdown_page
from netvlad_deploy.report.matches import Album, choose, draw_matches, match_blocks, section_caption
from netvlad_deploy.report.page import Photos
from netvlad_deploy.retrieval.recall import Agreement, Match, QueryResult, Recall
from netvlad_deploy.spec.items import Skipped
from netvlad_deploy.spec.verdict import Verdict


def result(number: int, first_right: int) -> QueryResult:
    """Return a query whose right image comes at this rank, among the first five or after them."""
    ranks = sorted({1, 2, 3, 4, 5, first_right})
    found = tuple(Match(name=f"d{rank}", rank=rank, similarity=1 / rank, right=rank == first_right) for rank in ranks)
    return QueryResult(query=f"q{number}", first_right=first_right, average_precision=1 / first_right, matches=found)


def candidate(name: str, *results: QueryResult, backend: str | None = None) -> CandidateRecall:
    share = float(np.mean([one.first_right == 1 for one in results]))
    found = Recall(
        recall={1: share / 2, 5: 0.375, 10: 0.5},
        recall_answerable={1: share, 5: 0.75, 10: 1.0},
        mean_average_precision=0.625,
        queries=results,
        num_queries=2 * len(results),
    )
    return CandidateRecall(
        name=name, backend=backend, precision="fp16", descriptor_size=4, images_per_s=12.34, found=found
    )


MATCHES = (Photos((), "Queries with their best matches", "matches.png"),)
REPORT = EvaluationReport(
    queries=Path("asked"),
    database=Path("known"),
    ground_truth="by truth.json",
    alone=False,
    num_queries=2,
    num_images=7,
    without_right=(),
    agreements=(),
    skipped=(),
    candidates=(candidate("a.onnx", result(0, 7), result(1, 1)),),
)


def test_the_lines_say_all_figures() -> None:
    lines = evaluation_lines(REPORT)
    assert lines[0] == "2 queries of asked, in the 7 images of known; right images by truth.json"
    assert lines[-1].split() == ["a.onnx", "fp16", "4", "25.0%", "37.5%", "50.0%", "0.625", "12.3"]
    assert len(lines) == 3


def test_a_recall_that_is_asked_for_and_missed_is_said() -> None:
    assert (replace(REPORT, min_recall=0.25).verdict, REPORT.verdict) == (Verdict.PASS, Verdict.PASS)
    assert evaluation_lines(replace(REPORT, min_recall=0.25))[0] == (
        "PASS: recall@1 of at least 0.25 is asked for, every artifact has it"
    )
    missed = replace(REPORT, min_recall=0.2501)
    assert missed.verdict is Verdict.FAIL
    said = "FAIL: recall@1 of at least 0.2501 is asked for, a.onnx has 0.25"
    assert evaluation_lines(missed)[0] == said
    assert said in markdown_page(evaluation_page(missed, (), MATCHES))


def test_queries_and_files_left_out_are_named() -> None:
    lost = (Skipped(path="x.jpg", reason="an empty file"), Skipped(path="y.txt", reason="no image by its suffix"))
    full = replace(
        REPORT,
        alone=True,
        num_queries=14,
        without_right=tuple(f"q{index}" for index in range(12)),
        skipped=lost,
        candidates=(*REPORT.candidates, candidate("b.onnx", result(0, 1), backend="strict")),
        agreements=(
            Agreement(candidate="b.onnx", reference="a.onnx", top1=0.5, differing=("q0",), distance=3e-5, image="d3"),
        ),
    )
    lines, page = evaluation_lines(full), markdown_page(evaluation_page(full, (), MATCHES))
    assert "each image among the others" in lines[0]
    assert "strict emulation on a CPU" in lines[1]
    assert lines[0].startswith("14 queries of asked")
    assert lines[2].startswith("12 queries without a right image: q0, q1")
    assert lines[2].endswith(
        "q9 ...; recall@N counts them as misses, as published figures do, @N of 2 and mAP leave them out"
    )
    header, row = (lines[place].split("  ") for place in (4, 5))
    assert [column.strip() for column in header if column] == [
        "artifact", "precision", "descriptor", "recall@1", "recall@5", "recall@10", "@1 of 2", "@5 of 2", "@10 of 2",
        "mAP", "images/s",
    ]  # fmt: skip
    assert [column.strip() for column in row if column][3:9] == ["25.0%", "37.5%", "50.0%", "50.0%", "75.0%", "100.0%"]
    assert lines[3] == "2 files skipped: 1 an empty file, 1 no image by its suffix"
    assert lines[-1].split() == ["b.onnx", "a.onnx", "50.0%", "3.0e-05", "d3"]
    assert all(line in page for line in lines[:4])
    assert page.startswith("# Retrieval of a.onnx, b.onnx\n")
    assert "A right image comes first: a.onnx for 25.0%, b.onnx for 50.0% of 14 queries." in page
    assert "Another best match than a.onnx in b.onnx: q0." in page
    assert "| x.jpg | an empty file |" in page
    assert "(matches.png)" in page
    other = replace(full, agreements=(replace(full.agreements[0], distance=None, image=None),))
    assert "of another length" in evaluation_lines(other)[-1]


@pytest.mark.parametrize(("depth", "shown"), [(None, (0,) * 3), (10, (255,) * 3)])
def test_the_picture_shows_grey_values_of_the_depth_that_was_embedded(
    tmp_path: Path, depth: int | None, shown: tuple[int, ...]
) -> None:
    """Of 10 bits in files of 16, which would be black."""
    names = [*(f"q{n}" for n in range(2)), *(f"d{n}" for n in range(1, 8))]
    paths = {name: tmp_path / f"{name}.png" for name in names}
    for path in paths.values():
        Image.fromarray(np.full((30, 40), 1023 if depth else 255, np.uint16)).save(path)
    with Image.open(io.BytesIO(draw_matches(REPORT, Album(paths, paths, depth=depth)))) as image:
        left = picture.MARGIN + picture.FRAME + picture.PHOTO_WIDTH // 2
        first_row = picture.MARGIN + picture.TITLE + picture.CAPTION + 2 * picture.GAP
        top = first_row + picture.FRAME + picture.PHOTO_HEIGHT // 2
        assert image.getpixel((left, top)) == shown


def test_misses_are_shown_first_and_spread() -> None:
    results = [result(index, 1 if index % 2 else 9) for index in range(40)]
    shown = choose(results)
    assert len(shown) == picture.MOST_ROWS
    assert [one.first_right > 1 for one in shown] == [True] * picture.MOST_MISSES + [False] * 2
    assert (shown[0].query, shown[picture.MOST_MISSES - 1].query) == ("q0", "q38")
    assert section_caption(candidate("a", *results), shown).endswith("Shown: 6 of 20 misses, 2 of 20 hits")
    assert len(choose(results[:3])) == 3
    assert [one.first_right for one in choose([result(index, 2) for index in range(9)])] == [2] * picture.MOST_ROWS


def test_the_picture_frames_right_green_and_wrong_red(tmp_path: Path) -> None:
    """Rows in order, photos whole: at the middle of each frame's upper edge, and in the middle of each photo."""
    paths = {}
    for index, name in enumerate([*(f"q{n}" for n in range(2)), *(f"d{n}" for n in range(1, 8))]):
        paths[name] = tmp_path / f"{name}.png"
        Image.new("RGB", (40, 30), (index * 20, 100, 50)).save(paths[name])
    paths["d2"].write_bytes(b"")  # vanished since: an empty frame
    content = draw_matches(REPORT, Album(paths, paths, depth=None))
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        sheet = np.asarray(image.convert("RGB"))
    step = picture.PHOTO_WIDTH + 2 * picture.FRAME + picture.GAP
    lefts = [picture.MARGIN + picture.GAP * (column > 0) + column * step for column in range(6)]
    top = picture.MARGIN + picture.TITLE + picture.CAPTION + 2 * picture.GAP
    height = picture.PHOTO_HEIGHT + 2 * picture.FRAME + 3 * picture.CAPTION + picture.GAP
    middle = picture.FRAME + picture.PHOTO_WIDTH // 2
    columns = [["q0", "d1", "d2", "d3", "d4", "d7"], ["q1", "d1", "d2", "d3", "d4", "d5"]]
    right = [["d7"], ["d1"]]
    for row, names in enumerate(columns):
        for left, name in zip(lefts, names, strict=True):
            frame = picture.PALE if name[0] == "q" else picture.RIGHT if name in right[row] else picture.WRONG
            edge = sheet[top + row * height + 1, left + middle]
            assert tuple(edge) == ImageColor.getrgb(frame), (row, name)
            photo = sheet[top + row * height + picture.FRAME + picture.PHOTO_HEIGHT // 2, left + middle]
            with_photo = ImageColor.getrgb(frame) if name == "d2" else (list(paths).index(name) * 20, 100, 50)
            assert tuple(photo) == with_photo, (row, name)


def test_a_long_name_is_cut_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    draw = type("Draw", (), {"text": lambda self, at, text, **style: drawn.append(text)})()
    page = picture._Sheet(Image.new("RGB", (8, 6)), Album({}, {}, depth=None))
    monkeypatch.setattr(page, "_draw", draw)
    page.text(0, 0, "short", 14, "#000000", width=170)
    page.text(0, 0, "a/very/long/path/" * 5 + "end.jpg", 14, "#000000", width=170)
    assert drawn[0] == "short"
    assert drawn[1].startswith("…")
    assert drawn[1].endswith("end.jpg")


@pytest.mark.parametrize("count", [1, 2])
def test_there_is_a_section_for_each_artifact(tmp_path: Path, count: int) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "x.png")
    paths = dict.fromkeys(("q0", "q1", *(f"d{n}" for n in range(1, 8))), tmp_path / "x.png")
    content = draw_matches(replace(REPORT, candidates=REPORT.candidates * count), Album(paths, paths, depth=None))
    with Image.open(io.BytesIO(content)) as image:
        assert 300 * count < image.height < 600 * count


def test_a_page_has_the_photos_of_the_matches_as_small_jpegs(tmp_path: Path) -> None:
    paths = {}
    for name in ("q0", "q1", *(f"d{n}" for n in range(1, 8))):
        paths[name] = tmp_path / f"{name}.png"
        Image.effect_noise((800, 600), 90).save(paths[name])
    paths["d2"].write_bytes(b"")  # vanished since
    paragraph, photos = match_blocks(REPORT, Album(paths, paths, depth=None), picture="m.png")
    assert "Shown: 1 of 1 misses, 1 of 1 hits" in str(paragraph)
    assert isinstance(photos, Photos)
    right = [[one.right for one in row] for row in photos.rows]
    assert right == [[None, *[False] * 4, True], [None, True, *[False] * 4]]
    assert photos.rows[0][5].name == "d7"
    assert photos.rows[0][5].caption == "7, cosine 0.1429"
    for row in photos.rows:
        for one in row:
            with Image.open(io.BytesIO(one.jpeg)) as small:
                assert (small.format, small.size) == ("JPEG", (picture.PHOTO_WIDTH, picture.PHOTO_HEIGHT))
            assert len(one.jpeg) < 32_000, "even noise"
