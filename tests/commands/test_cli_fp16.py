"""FP16 from the command line: export, validate, embed, build, and the precision report."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.report.precision import CasePrecision, PrecisionReport, draw_precisions, precision_lines
from netvlad_deploy.workflow.precision import precision
from netvlad_deploy.workflow.source import Source
from tests.command import Command, error_of
from tests.heads import sharp_head
from tests.modules import features

pytestmark = [pytest.mark.export, pytest.mark.ort]


@pytest.fixture
def sharp(tmp_path: Path) -> Path:
    """A sharp head as a checkpoint in the test's folder: K=8, D=32, G=2, logits up to 59 apart for unit norm."""
    torch.save(sharp_head(8, 32, 2, 30, 0).state_dict(), tmp_path / "sharp.pt")
    return tmp_path / "sharp.pt"


def test_export_and_validate(command: Command, sharp: Path) -> None:
    outcome = command("export", sharp, "--precision", "fp16")
    assert outcome.code == 0
    assert outcome.out.startswith("sharp.onnx  fp16, ")
    assert "features float16 -> descriptor float32" in outcome.out
    assert "logit step 0.031 at features of norm 1, values up to 65440" in outcome.out
    assert "warning" not in outcome.out
    outcome = command("validate", "sharp.onnx")
    assert outcome.code == 0
    assert outcome.out.startswith("PASS  sharp.onnx on strict against oracle, fp16, ")
    assert "largest values, 65440" in outcome.out
    assert " coarse " in outcome.out
    assert "near ties" in outcome.out


def test_features_of_large_norm_are_warned_of_and_wide_logits_say_their_price(command: Command, sharp: Path) -> None:
    outcome = command("export", sharp, "--precision", "fp16", "--feature-norm", 450)
    assert "warning: FP16 logits are 16 apart at features of norm 450" in outcome.out
    outcome = command("export", sharp, "--precision", "fp16", "--feature-norm", 450, "--wide-logits", "--force")
    assert "apart" not in outcome.out
    assert "warning: FP32 logits need the features in FP32: 128 bytes each, 32 MiB" in outcome.out
    assert command("validate", "sharp.onnx").out.startswith(
        "PASS  sharp.onnx on strict against oracle, fp16-wide-logits"
    )


@pytest.mark.parametrize(
    "options",
    [
        ("--input-dtype", "float32"),
        ("--output-dtype", "float16"),
        ("--masked", "--probe"),
        ("--wide-logits", "--masked", "--output-dtype", "float16", "--opset", 20),
    ],
)
def test_every_kind_of_fp16_graph_validates(command: Command, sharp: Path, options: tuple[object, ...]) -> None:
    assert command("export", sharp, "--precision", "fp16", *options).code == 0
    assert command("validate", "sharp.onnx").code == 0


def test_fp16_against_fp32_and_the_checkpoint(command: Command, sharp: Path) -> None:
    command("export", sharp, "-o", "fp32.onnx")
    command("export", sharp, "--precision", "fp16")
    for pair in (("sharp.onnx", "fp32.onnx"), ("sharp.onnx", sharp), ("fp32.onnx", "sharp.onnx")):
        assert command("validate", pair[0], "--against", pair[1]).code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "fp8"), "precision 'fp8' is unknown: choose fp32 or fp16"),
        (("--wide-logits",), "wide logits and float16 tensors belong to --precision fp16"),
        (("--input-dtype", "float16"), "belong to --precision fp16"),
        (("--precision", "fp16", "--feature-norm", 0), "feature-norm is 0, expected 1e-12 to 1e+12"),
    ],
)
def test_options_that_contradict_each_other(command: Command, options: tuple[object, ...], message: str) -> None:
    outcome = command("export", *options)
    assert outcome.code == 2
    assert message in error_of(outcome.err)


def embed(command: Command, x: np.ndarray, folder: Path) -> np.ndarray:
    np.save(folder / "x.npy", x)
    outcome = command("embed", "sharp.onnx", "x.npy", "-o", "y.npy", "--force")
    assert outcome.code == 0, outcome.err
    descriptors: np.ndarray = np.load(folder / "y.npy")
    return descriptors


def test_embed_takes_float32_and_float16_files(command: Command, sharp: Path, tmp_path: Path) -> None:
    x = features(3, 20, 32).astype(np.float16)
    command("export", sharp, "--precision", "fp16")
    half = embed(command, x, tmp_path)
    assert half.dtype == np.float32
    assert np.array_equal(half, embed(command, x.astype(np.float32), tmp_path))
    command("export", sharp, "--force")
    assert np.allclose(half, embed(command, x, tmp_path), atol=0.02)


def test_embed_names_a_value_that_fp16_cannot_hold(command: Command, sharp: Path, tmp_path: Path) -> None:
    command("export", sharp, "--precision", "fp16", "--masked")
    x = features(3, 20, 32)
    x[1, 4, 2] = 65472
    np.save(tmp_path / "x.npy", x)
    outcome = command("embed", "sharp.onnx", "x.npy", "-o", "y.npy")
    assert (outcome.code, "2 x 256, 1 skipped" in outcome.out) == (1, True)
    assert "too large for this artifact: first at row 4, 65472 is over 65440" in outcome.err
    np.savez(tmp_path / "s.npz", good=x[0], bad=x[1])
    outcome = command("embed", "sharp.onnx", "s.npz", "-o", "t.npz")
    assert outcome.code == 1
    assert "s.npz [bad]: local descriptors that do not fit (features are too large for this artifact" in outcome.err


def test_embed_warns_of_the_longest_local_descriptor(command: Command, sharp: Path, tmp_path: Path) -> None:
    command("export", sharp, "--precision", "fp16", "--masked")
    x = features(3, 20, 32)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    np.save(tmp_path / "x.npy", x)
    assert "logits" not in command("embed", "sharp.onnx", "x.npy", "-o", "y.npy").err
    x[2, 7] *= 100
    np.save(tmp_path / "x.npy", x)
    warning = command("embed", "sharp.onnx", "x.npy", "-o", "y.npy", "--force").err
    assert "x.npy/2, row 7 has norm 100: fp16 logits are 4 apart there" in warning
    np.savez(tmp_path / "s.npz", short=x[0], long=x[2])
    assert "long, row 7 has norm 100" in command("embed", "sharp.onnx", "s.npz", "-o", "t.npz").err


def test_a_bank_of_ones_own(command: Command, sharp: Path, tmp_path: Path) -> None:
    command("export", sharp, "--precision", "fp16")
    np.save(tmp_path / "bank.npy", features(12, 20, 32))
    np.save(tmp_path / "queries.npy", features(5, 20, 32, seed=1))
    outcome = command("validate", "sharp.onnx", "--bank", "bank.npy", "--queries", "queries.npy", "--json")
    assert outcome.code == 0
    figures = json.loads(outcome.out)["retrieval"]
    assert [(figure["bank"], figure["arrangement"], figure["queries"], figure["images"]) for figure in figures] == [
        ("near ties", "own bank", 64, 64),
        ("near ties", "crossed", 64, 64),
        ("bank.npy", "own bank", 5, 12),
        ("bank.npy", "crossed", 5, 12),
    ]
    assert {figure["top1"] for figure in figures[2:]} == {1.0}
    outcome = command("validate", "sharp.onnx", "--queries", "queries.npy")
    assert outcome.code == 2
    assert "pass --bank too" in error_of(outcome.err)


@pytest.mark.rtx
def test_an_fp16_engine_is_called_fp16_and_takes_no_tf32(command: Command, sharp: Path) -> None:
    command("export", sharp, "--precision", "fp16")
    outcome = command("build", "sharp.onnx", "--flavor", "tensorrt-rtx", "--json")
    assert outcome.code == 0
    record = json.loads(outcome.out)
    assert (record["precision"], record["dtypes"]) == ("fp16", {"features": "float16", "descriptor": "float32"})
    outcome = command("build", "sharp.onnx", "--flavor", "tensorrt-rtx", "--tf32", "--force")
    assert outcome.code == 2
    assert "TF32 is for FP32 graphs, sharp.onnx is fp16" in error_of(outcome.err)


def test_bench_times_fp16_and_not_the_emulator(command: Command, sharp: Path) -> None:
    command("export", sharp, "--precision", "fp16")
    outcome = command("bench", "sharp.onnx", "--num-features", 10, "--duration", 0.1)
    assert outcome.code == 0, outcome.err
    outcome = command("bench", "sharp.onnx", "--backend", "strict", "--duration", 0.1)
    assert outcome.code == 2
    assert "emulates" in error_of(outcome.err)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    torch.save(sharp_head(8, 32, 2, 30, 0).state_dict(), folder / "sharp.pt")
    precision(Source(checkpoint=folder / "sharp.pt"), folder / "report")
    return folder / "report"


class TestPrecision:
    def test_the_table_and_the_folder(self, command: Command, sharp: Path, tmp_path: Path) -> None:
        outcome = command("precision", sharp, "-o", "report")
        assert outcome.code == 0, outcome.err
        assert outcome.out.splitlines()[1].split()[-4:] == ["fp16", "fp16-wide-logits", "plain", "fp16"]
        assert "not finite" in outcome.out
        names = sorted(path.name for path in (tmp_path / "report").iterdir())
        assert names == ["precision.svg", "report.html", "report.json", "report.md"]
        assert command("precision", sharp, "-o", "report").code == 2

    def test_the_page_says_the_type_of_each_operator(self, report: Path) -> None:
        page = (report / "report.md").read_text()
        assert "| MatMul | 2 |  | both products:" in page
        assert "| ReduceSum |  | 5 | sums" in page
        assert "](precision.svg)" in page

    def test_ours_is_finite_and_plain_fp16_is_not(self, report: Path) -> None:
        record = json.loads((report / "report.json").read_text())
        assert {figure["precision"] for figure in record["cases"] if figure["non_finite"]} == {"plain fp16"}
        worst = {
            precision: max(
                figure["distance"] or 0
                for figure in record["cases"]
                if figure["precision"] == precision and figure["feature_norm"] < 2
            )
            for precision in record["precisions"]
        }
        assert worst["fp32"] < 1e-9 < worst["fp16-wide-logits"] <= worst["fp16"] < 1e-5

    def test_the_same_report_gives_the_same_picture(self) -> None:
        figures = [
            CasePrecision(case=case, precision=precision, feature_norm=1.0, distance=distance, non_finite=bad)
            for case in ("typical", "near centroids")
            for precision, distance, bad in (("fp32", 0.0, 0), ("fp16", 1e-7, 0), ("plain fp16", None, 2))
        ]
        drawn = PrecisionReport(
            origin="m.pt",
            precisions=("fp32", "fp16", "plain fp16"),
            operators=(),
            cases=tuple(figures),
            warnings=("look out",),
        )
        pictures = [draw_precisions(drawn).decode() for _ in range(2)]
        assert pictures[0] == pictures[1]
        for text in ("Precisions of m.pt", "near centroids", "plain fp16", "NaN", "left is better"):
            assert text in pictures[0]
        assert precision_lines(drawn)[-1] == "warning: look out"
