from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.errors import ArtifactError, UsageError
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.models.pipeline import Pipeline
from netvlad_deploy.oracle.goldens import Golden, distances, load_goldens
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.parity.heads import ParityReport
from netvlad_deploy.parity.pipelines import compare_goldens
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.images import ImageProfile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Arrays
from netvlad_deploy.workflow import validate as workflow
from netvlad_deploy.workflow.validate import validate
from tests.pipelines import tiny_pipeline

pytestmark = [pytest.mark.export, pytest.mark.ort]


def module(pipeline: Pipeline, name: str) -> Any:
    return pipeline.backbone.get_submodule(name)


class TorchPipeline(Runner):
    """A pipeline in torch, in FP32 or every product in FP16, to plant faults in."""

    def __init__(self, pipeline: Pipeline, *, precision: str = "fp32", profiles: tuple[ImageProfile, ...] = ()) -> None:
        super().__init__(
            "torch", pipeline.head.spec, inputs=("images",), outputs=("descriptor",), dtype=np.dtype(np.uint8),
            precision=precision, profiles=profiles,
        )  # fmt: skip
        self.pipeline = pipeline
        self.batches: list[int] = []

    def _run(self, feeds: Arrays) -> Arrays:
        self.batches.append(len(feeds["images"]))
        with torch.inference_mode():
            return {"descriptor": self.pipeline(torch.from_numpy(feeds["images"])).numpy()}


def judged(exported: OnnxArtifact, pipeline: Pipeline, **options: Any) -> ParityReport:
    """Return the report on the descriptors alone; the head of this runner does not show."""
    goldens, parameters = load_goldens(exported.reference_path), load_reference(exported.reference_path)
    report = compare_goldens(TorchPipeline(pipeline, **options), goldens, parameters)
    heads = [case for case in report.cases if case.part]
    assert [case.verdict for case in heads] == [Verdict.NOT_JUDGED] * sum(case.batch > 0 for case in report.cases)
    assert all(case.reason == "its local descriptors do not show: torch gives its outputs alone" for case in heads)
    return replace(report, cases=tuple(case for case in report.cases if not case.part))


def test_an_exported_pipeline_passes(tiny: OnnxArtifact) -> None:
    report = judged(tiny, tiny_pipeline())
    assert report.verdict is Verdict.PASS
    assert [case.name for case in report.cases] == ["images 224x224", "images 225x257", "images 320x256"]
    assert all(case.outputs[0].worst_ratio < 0.5 for case in report.cases)


def swap_channels(pipeline: Pipeline) -> None:
    conv = module(pipeline, "0")
    conv.weight.data = conv.weight.data.flip(1)


def shift_mean(pipeline: Pipeline) -> None:
    pipeline.mean[1] += 1


class Transposed(nn.Module):
    """Take an image for one of its width as height, or give a feature map as if it lay (h,w,D) in memory."""

    def __init__(self, backbone: nn.Module, where: str) -> None:
        super().__init__()
        self.backbone, self.where = backbone, where

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "image":
            result: Tensor = self.backbone(x.reshape(*x.shape[:2], x.shape[3], x.shape[2]))
            return result
        feature_map: Tensor = self.backbone(x)
        return feature_map.permute(0, 2, 3, 1).reshape(feature_map.shape)


def transpose_image(pipeline: Pipeline) -> None:
    pipeline.backbone = Transposed(pipeline.backbone, "image")


def transpose_map(pipeline: Pipeline) -> None:
    pipeline.backbone = Transposed(pipeline.backbone, "map")


def ignore_epsilon(pipeline: Pipeline) -> None:
    module(pipeline, "1").eps = 0.0


def turn_a_filter(pipeline: Pipeline) -> None:
    module(pipeline, "3").weight.data[2] *= 1.01


def swap_clusters(pipeline: Pipeline) -> None:
    assert isinstance(pipeline.head, NetVLAD)
    centres = pipeline.head.clusters2.data
    centres[..., [0, 1]] = centres[..., [1, 0]]


FAULTS = (swap_channels, shift_mean, transpose_map, ignore_epsilon, turn_a_filter, swap_clusters)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_at_every_size(tiny: OnnxArtifact, fault: Callable[[Pipeline], None]) -> None:
    pipeline = tiny_pipeline()
    fault(pipeline)
    report = judged(tiny, pipeline)
    assert [case.verdict for case in report.cases] == [Verdict.FAIL] * 3


@pytest.mark.parametrize("fault", [swap_channels, transpose_map, swap_clusters])
def test_a_gross_fault_is_found_in_half_precision(half: OnnxArtifact, fault: Callable[[Pipeline], None]) -> None:
    """The tolerance passes rounding to 11 bits, and a missing epsilon with it."""
    pipeline = tiny_pipeline()
    assert judged(half, pipeline, precision="fp16").verdict is Verdict.PASS
    fault(pipeline)
    assert judged(half, pipeline, precision="fp16").verdict is Verdict.FAIL


def test_an_order_of_positions_is_invisible(tiny: OnnxArtifact) -> None:
    """The descriptor is a sum over the positions: whether rows or columns come first says nothing."""
    pipeline = tiny_pipeline()
    local_descriptors = pipeline.local_descriptors
    pipeline.local_descriptors = lambda images: local_descriptors(images).flip(1)  # type: ignore[method-assign]
    assert judged(tiny, pipeline).verdict is Verdict.PASS


def test_height_for_width_is_found_where_an_image_is_not_square(tiny: OnnxArtifact) -> None:
    pipeline = tiny_pipeline()
    transpose_image(pipeline)
    report = judged(tiny, pipeline)
    assert [case.verdict for case in report.cases] == [Verdict.PASS, Verdict.FAIL, Verdict.FAIL]


def test_values_that_are_not_finite_fail(tiny: OnnxArtifact) -> None:
    pipeline = tiny_pipeline()
    module(pipeline, "6").bias.data[0] = torch.nan
    report = judged(tiny, pipeline)
    assert report.verdict is Verdict.FAIL
    assert report.cases[0].outputs[0].non_finite > 0
    assert report.cases[0].outputs[0].worst_error == np.inf


class TestTolerance:
    golden = Golden(
        feeds={"images": np.zeros((2, 3, 3), np.uint8)},
        descriptor=np.ones(4),
        distances={"fp32": 1e-6, "tf32": 1e-3, "fp16": 0.02},
    )

    def test_follows_the_distance_measured_in_the_precision(self) -> None:
        tolerances = [self.golden.tolerance(precision) for precision in ("fp32", "tf32", "fp16")]
        assert tolerances == pytest.approx([16e-6, 4e-3, 0.08])

    def test_has_a_floor(self) -> None:
        lucky = replace(self.golden, distances={"fp32": 0.0, "tf32": 0.0})
        assert lucky.tolerance("fp32") == pytest.approx(16 * 2.0**-23)
        assert lucky.tolerance("tf32") == pytest.approx(4 * 2.0**-12)

    def test_of_a_precision_that_was_not_measured_is_refused(self) -> None:
        with pytest.raises(ArtifactError, match="images 2x3 was measured for fp32, tf32, fp16, not for fp16-wide"):
            self.golden.tolerance("fp16-wide-logits")

    def test_distances_are_relative_to_the_length(self) -> None:
        expected = np.array([[3.0, 4.0], [0.3, 0.4]])
        assert distances(expected + np.array([[0.5, 0], [0.05, 0]]), expected) == pytest.approx([0.1, 0.1])
        assert distances(np.array([[np.nan, 1.0]]), expected[:1]).tolist() == [np.inf]


class TestRunners:
    def test_images_are_repeated_where_a_profile_wants_more(self, tiny: OnnxArtifact) -> None:
        profiles = tuple(
            ImageProfile.parse(text) for text in ("2x224x224", "3x225x257", "2x320x256,2x320x256,4x320x320")
        )
        pipeline = TorchPipeline(tiny_pipeline(), profiles=profiles)
        report = compare_goldens(pipeline, load_goldens(tiny.reference_path), load_reference(tiny.reference_path))
        assert [case.batch for case in report.cases if not case.part] == pipeline.batches == [2, 3, 2]

    def test_golden_images_that_do_not_fit_are_not_judged(self, tiny: OnnxArtifact) -> None:
        report = judged(tiny, tiny_pipeline(), profiles=(ImageProfile.parse("1x224x224"),))
        assert [case.verdict for case in report.cases] == [Verdict.PASS, *[Verdict.NOT_JUDGED] * 2]
        report = judged(tiny, tiny_pipeline(), profiles=(ImageProfile.parse("1x64x64"),))
        assert report.verdict is Verdict.NOT_JUDGED
        assert len(report.cases) == 3
        (reason,) = {case.reason for case in report.cases}
        assert reason.startswith("torch takes batch 1:1:1, height 64:64:64, width 64:64:64: build with a profile that")


class TestValidate:
    def test_the_head_is_judged_by_the_oracle_on_its_own_local_descriptors(self, tiny: OnnxArtifact) -> None:
        report = validate(Candidate(path=tiny.path))
        assert report.verdict is Verdict.PASS
        assert (report.candidate, report.reference) == ("tiny.onnx", "golden images")
        names = [case.name for case in report.cases]
        assert names[:1] + names[3:] == ["images 224x224", *(f"head on {name}" for name in names[:3])]
        assert [case.num_features for case in report.cases] == [None] * 3 + [28 * 28, 28 * 32, 40 * 32]

    def test_half_precision_is_judged_strictly(self, half: OnnxArtifact, tiny: OnnxArtifact) -> None:
        report = validate(Candidate(path=half.path))
        assert (report.verdict, report.candidate, report.precision) == (Verdict.PASS, "half.onnx on strict", "fp16")
        assert all(output.worst_error > 1e-5 for case in report.cases[:3] for output in case.outputs)
        against = validate(Candidate(path=half.path), against=tiny.path)
        assert (against.verdict, against.reference) == (Verdict.PASS, "tiny.onnx")

    def test_a_wrong_head_is_localised(self, tiny: OnnxArtifact, monkeypatch: pytest.MonkeyPatch) -> None:
        straight = load_reference

        def swapped(path: Path) -> Any:
            parameters = straight(path)
            return replace(parameters, centroids=parameters.centroids[[1, 0, 2, 3]])

        monkeypatch.setattr(workflow, "load_reference", swapped)
        report = validate(Candidate(path=tiny.path))
        assert [case.verdict for case in report.cases] == [Verdict.PASS] * 3 + [Verdict.FAIL] * 3
        assert report.departure is not None
        assert (report.departure.tensor, report.departure.clusters) == ("mean_residual", (0, 1))

    @pytest.mark.parametrize("backend", ["torch", "oracle"])
    def test_backends_without_a_backbone_are_refused(self, tiny: OnnxArtifact, backend: str) -> None:
        with pytest.raises(UsageError, match=f"has a backbone, which {backend} has not"):
            open_runner(tiny, backend=backend)

    def test_only_pipelines_are_compared_with_pipelines(self, tiny: OnnxArtifact, exported: OnnxArtifact) -> None:
        with pytest.raises(UsageError, match=r"takes images, .* does not: compare two that do"):
            validate(Candidate(path=tiny.path), against=exported.path)
        with pytest.raises(UsageError, match=r"holds no image backbone"):
            validate(Candidate(path=tiny.path), against=exported.reference_path)
        with pytest.raises(UsageError, match="is judged by its golden inputs alone"):
            validate(Candidate(path=tiny.path), bank=exported.path)
        with pytest.raises(UsageError, match=r"takes features, .* does not: compare two that do"):
            validate(Candidate(path=exported.path), against=tiny.path)
