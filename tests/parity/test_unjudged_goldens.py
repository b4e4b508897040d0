"""A golden image that could not fail is NOT_JUDGED and counted, and the export warns of it."""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import Golden, doubts, load_goldens
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.parity.pipelines import compare_goldens
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.runtime.torch_runner import TorchRunner
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import IMAGES
from netvlad_deploy.spec.layer import DESCRIPTOR, NetVLADSpec
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Arrays
from netvlad_deploy.workflow import validate as workflow
from netvlad_deploy.workflow.validate import validate
from tests.command import Command
from tests.pipelines import flat_pipeline, tiny_pipeline

pytestmark = [pytest.mark.export, pytest.mark.ort]

HALF = GraphOptions(precision="fp16")


def goldens_of(report: ParityReport) -> list[Verdict]:
    return [case.verdict for case in report.cases if not case.part]


def heads_of(report: ParityReport) -> list[Verdict]:
    return [case.verdict for case in report.cases if case.part]


def export_doubt(artifact: OnnxArtifact) -> list[str]:
    return [warning for warning in artifact.warnings if "golden image" in warning]


class TestFlatActivations:
    def test_are_judged_where_the_extrapolation_from_fp32_gave_up(self, tmp_path: Path) -> None:
        """Four times the FP32 distance times 2^13 is over 0.1; measured, FP16 moves it by less than 0.02."""
        artifact = export_onnx(flat_pipeline(30), tmp_path / "m.onnx", HALF)
        goldens = load_goldens(artifact.reference_path)
        assert min(golden.distances["fp32"] for golden in goldens) * 4 * 2**13 > 0.1
        assert max(golden.distances["fp16"] for golden in goldens) < 0.02
        assert not export_doubt(artifact)
        report = validate(Candidate(path=artifact.path))
        assert (report.verdict, goldens_of(report)) == (Verdict.PASS, [Verdict.PASS] * 3)
        ratios = [output.worst_ratio for case in report.cases[:3] for output in case.outputs]
        assert all(0.02 < ratio < 0.7 for ratio in ratios), ratios

    def test_a_fault_in_one_filter_is_still_found(self, tmp_path: Path) -> None:
        artifact = export_onnx(flat_pipeline(30), tmp_path / "m.onnx", HALF)
        goldens, parameters = load_goldens(artifact.reference_path), load_reference(artifact.reference_path)
        wrong = flat_pipeline(30)
        conv = wrong.backbone.get_submodule("6")
        assert isinstance(conv, nn.Conv2d)
        conv.weight.data[2] *= 1.1
        for pipeline, verdict in ((flat_pipeline(30), Verdict.PASS), (wrong, Verdict.FAIL)):
            runner = TorchRunner(pipeline)
            runner.precision = "fp16"
            assert compare_goldens(runner, goldens, parameters).verdict is verdict

    def test_that_fp16_destroys_are_not_judged_and_said_at_export(self, tmp_path: Path, command: Command) -> None:
        artifact = export_onnx(flat_pipeline(1000), tmp_path / "m.onnx", HALF)
        (doubt,) = export_doubt(artifact)
        assert doubt.startswith("validate cannot judge 3 of 3 golden images in fp16, which moved images 64x80 by 0.")
        report = validate(Candidate(path=artifact.path))
        assert goldens_of(report) == [Verdict.NOT_JUDGED] * 3
        assert report.verdict is Verdict.NOT_JUDGED
        assert all("rounding may move the descriptor by" in case.reason for case in report.cases[:3])
        assert command("validate", "m.onnx").code == 1

    def test_that_are_not_finite_in_the_graph_fail_even_so(self, tmp_path: Path) -> None:
        artifact = export_onnx(flat_pipeline(1000), tmp_path / "m.onnx", HALF)
        goldens, parameters = load_goldens(artifact.reference_path), load_reference(artifact.reference_path)
        wrong = flat_pipeline(1000)
        conv = wrong.backbone.get_submodule("6")
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        conv.bias.data[0] = torch.nan
        runner = TorchRunner(wrong)
        runner.precision = "fp16"
        assert goldens_of(compare_goldens(runner, goldens, parameters)) == [Verdict.FAIL] * 3


def dead(pipeline: Pipeline) -> None:
    """Every ReLU at the end gives 0."""
    pipeline.backbone = nn.Sequential(pipeline.backbone, Scaled(0.0)).eval()


def constant(pipeline: Pipeline) -> None:
    """The map is the same for every image."""
    last = pipeline.backbone.get_submodule("7")
    assert isinstance(last, nn.BatchNorm2d)
    last.weight.data.zero_()


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("fault", [dead, constant])
def test_a_backbone_that_sees_nothing_proves_nothing(
    tmp_path: Path, fault: Callable[[Pipeline], None], precision: str
) -> None:
    pipeline = tiny_pipeline()
    fault(pipeline)
    artifact = export_onnx(pipeline, tmp_path / "m.onnx", GraphOptions(precision=precision))
    said = export_doubt(artifact)
    assert said[0].startswith(f"validate cannot judge 3 of 3 golden images in {precision}")
    assert "that of another input is" in said[0]
    assert ["every local descriptor of every golden image is 0" in one for one in said[1:]] == [True] * (fault is dead)
    report = validate(Candidate(path=artifact.path))
    assert (report.verdict, goldens_of(report)) == (Verdict.NOT_JUDGED, [Verdict.NOT_JUDGED] * 3)
    assert Verdict.FAIL not in heads_of(report)


class Repeated(Runner):
    """Gives the golden descriptors back, of an image its own, and shows nothing else."""

    def __init__(self, spec: NetVLADSpec, goldens: Sequence[Golden]) -> None:
        super().__init__("repeated", spec, inputs=(IMAGES,), outputs=(DESCRIPTOR,), dtype=np.dtype(np.uint8))
        self.precision = "fp16"
        self.known = {golden.feeds["images"].tobytes(): golden.descriptor for golden in goldens}

    def _run(self, feeds: Arrays) -> Arrays:
        return {DESCRIPTOR: np.stack([self.known[image.tobytes()] for image in feeds[IMAGES]]).astype(np.float32)}


@pytest.mark.parametrize(("distance", "verdict"), [(0.02, Verdict.NOT_JUDGED), (0.002, Verdict.PASS)])
def test_a_golden_that_answers_for_the_head_must_show_two_clusters_in_each_other_s_place(
    tmp_path: Path, distance: float, verdict: Verdict
) -> None:
    """Parts of all clusters that are alike: a swap moves the descriptor by 0.05 to 0.1."""
    artifact = export_onnx(tiny_pipeline(), tmp_path / "m.onnx", HALF)
    parameters, random = load_reference(artifact.reference_path), np.random.default_rng(0)
    goldens = []
    for golden in load_goldens(artifact.reference_path)[:2]:
        alike = random.standard_normal((parameters.spec.feature_size, 1)) + np.zeros(parameters.spec.num_clusters)
        parts = alike + 0.1 * random.standard_normal(alike.shape)  # (D,K)
        descriptor = (parts / np.linalg.norm(parts)).ravel()
        goldens.append(replace(golden, descriptor=descriptor, distances={"fp16": distance}))
    with Repeated(parameters.spec, goldens) as runner:
        report = compare_goldens(runner, goldens, parameters)
    assert goldens_of(report) == [verdict] * 2
    assert report.verdict is verdict
    said = [case.reason for case in report.cases if "two clusters in each other's place" in case.reason]
    assert len(said) == 2 * (verdict is Verdict.NOT_JUDGED)


class TestDoubts:
    image = np.zeros((2, 3, 3), np.uint8)
    one = Golden(feeds={"images": image}, descriptor=np.array([1.0, 0.0]), distances={"fp32": 1e-7, "fp16": 1e-3})
    near = replace(one, descriptor=np.array([1.0, 0.005]))
    far = replace(one, descriptor=np.array([0.0, 1.0]))

    def test_there_are_none_where_images_are_told_apart(self) -> None:
        assert doubts((self.one, self.far), "fp16") == ()
        assert doubts((self.one, self.near, self.far), "fp32") == ()

    def test_a_tolerance_must_not_reach_another_image(self) -> None:
        (said,) = doubts((self.one, self.near, self.far), "fp16")
        assert said == (
            "validate cannot judge 2 of 3 golden images in fp16, which moved images 2x3 by 0.001: rounding may move "
            "the descriptor by 0.004, that of another input is 0.005 away: export with --precision fp32"
        )

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"descriptor": np.zeros(2)}, "its descriptor is 0, which has no direction"),
            ({"distances": {"fp32": 0.01}}, "rounding may move the descriptor by 0.16, more than 0.1 of its length"),
            ({"distances": {"fp32": np.inf}}, "rounding may move the descriptor by inf, more than"),
        ],
    )
    def test_of_each_kind(self, changed: dict[str, Any], reason: str) -> None:
        golden = replace(self.one, **changed)
        (said,) = doubts((golden, self.far), "fp32")
        assert said.startswith("validate cannot judge 1 of 2 golden images in fp32")
        assert reason in said
        assert "--precision" not in said


class TestHeads:
    def test_that_do_not_show_are_counted(self, tiny: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
        report = validate(Candidate(path=tiny.path))
        assert report.verdict is Verdict.PASS
        assert goldens_of(report) == [Verdict.PASS] * 3
        assert heads_of(report) == [Verdict.NOT_JUDGED] * 3
        assert "the package onnx is missing" in report.cases[3].reason
        assert [case.name for case in report.cases[3:]] == [f"head on {case.name}" for case in report.cases[:3]]

    def test_that_are_wrong_fail_the_whole_though_no_image_is_judged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pipeline = tiny_pipeline()
        dead(pipeline)
        artifact = export_onnx(pipeline, tmp_path / "m.onnx")
        parameters = load_reference(artifact.reference_path)
        swapped = replace(parameters, centroids=parameters.centroids[[1, 0, 2, 3]])
        monkeypatch.setattr(workflow, "load_reference", lambda path: swapped)
        report = validate(Candidate(path=artifact.path))
        assert (report.verdict, heads_of(report)) == (Verdict.FAIL, [Verdict.FAIL] * 3)
