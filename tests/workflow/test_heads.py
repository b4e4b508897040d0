"""Several heads of one file in one graph: each equals its own formula, and each is judged by its own oracle."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import ArtifactError, InputError, ParityError, UsageError
from netvlad_deploy.export.onnx_model import export_onnx
from netvlad_deploy.models.checkpoints import load_checkpoint, read_heads
from netvlad_deploy.models.heads import Heads, safe_names
from netvlad_deploy.oracle.reference_file import load_references
from netvlad_deploy.parity.several_heads import compare_heads
from netvlad_deploy.runner import profiled_shapes
from netvlad_deploy.runtime.one_head import OneHead
from netvlad_deploy.runtime.open_runner import Candidate, open_runner
from netvlad_deploy.spec.build_options import BuildOptions, fitting_profile
from netvlad_deploy.spec.graph_options import GraphOptions, HeadsRange
from netvlad_deploy.spec.layer import HeadsSpec
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import Arrays, Float64
from netvlad_deploy.workflow.bench import bench
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.embed import EmbedOptions, embed
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.source import Source
from netvlad_deploy.workflow.validate import validate
from tests.command import Command, error_of
from tests.models.aggregators.samples import salad
from tests.models.dialects import formulas
from tests.models.dialects.samples import Source as Random
from tests.models.dialects.samples import State, temporally_aware

pytestmark = [pytest.mark.export, pytest.mark.ort]

HALVES = ("pool_layer_after", "pool_layer_before")
Formula = Callable[[dict[str, Float64], Float64], Float64]
WIDTHS = {"pool_layer_after": 9, "pool_layer_before": 9, "retrieval.pool": 6, "text_pooling": 10}
ROWS = {"pool_layer_after": 5, "pool_layer_before": 3, "retrieval.pool": 1, "text_pooling": 7}
"""Every head takes its own number of local descriptors."""


def mixture() -> State:
    """Return the heads of a file by four projects: ghosts and BatchNorm, two halves without, and one with whitening."""
    random = Random(8)
    state = temporally_aware(15, HALVES[::-1])
    state |= {f"text_pooling.{name}": tensor for name, tensor in random.columns(4, 1, 10, 0.6).items()}
    state |= random.convolution(3, 6, 12.0, "retrieval.pool.")
    return {**state, "retrieval.WPCA.0.weight": random(5, 18, 1, 1), "retrieval.WPCA.0.bias": random(5)}


def expected(feeds: Arrays) -> dict[str, Float64]:
    """Return the descriptor of each head by the formula of its own code, from the tensors of the file."""
    state = {name: tensor.double().numpy() for name, tensor in mixture().items()}

    def of(prefix: str, formula: Formula, head: str) -> Float64:
        own = {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
        return formula(own, feeds[f"features.{head}"].astype(np.float64))

    def half(own: dict[str, Float64], x: Float64) -> Float64:
        return formulas.collaborative_experts(own, formulas.unit(x, 2))

    return {
        **{head: of(f"{head}.", half, head) for head in HALVES},
        "retrieval.pool": of("retrieval.", formulas.patch_netvlad, "retrieval.pool"),
        "text_pooling": of("text_pooling.", formulas.collaborative_experts, "text_pooling"),
    }


def feeds_of(dtype: str = "float32", batch: int = 2) -> Arrays:
    random = np.random.default_rng(3)
    return {
        f"features.{head}": random.standard_normal((batch, ROWS[head], width)).astype(dtype)
        for head, width in WIDTHS.items()
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("heads") / "mixture.pth"
    torch.save({"state_dict": mixture()}, path)
    return path


@pytest.fixture(scope="module")
def artifact(checkpoint: Path) -> OnnxArtifact:
    """Return all heads in FP32; do not change it."""
    source = Source(checkpoint=checkpoint, all_heads=True)
    return export(source, checkpoint.with_name("single.onnx"), GraphOptions())


@pytest.fixture(scope="module")
def half(checkpoint: Path) -> OnnxArtifact:
    """Return all heads in FP16; do not change it."""
    source = Source(checkpoint=checkpoint, all_heads=True)
    return export(source, checkpoint.with_name("half.onnx"), GraphOptions(precision="fp16"))


def test_every_head_equals_its_own_formula(artifact: OnnxArtifact, half: OnnxArtifact) -> None:
    assert artifact.inputs == tuple(f"features.{head}" for head in WIDTHS)
    assert artifact.outputs == tuple(f"descriptor.{head}" for head in WIDTHS)
    for path, backend, largest in ((artifact.path, None, 1e-10), (half.path, "strict", 1e-4)):
        with open_runner(path, backend=backend) as runner:
            feeds = feeds_of(runner.dtype.name)
            got = runner.run(feeds)
        for head, wanted in expected(feeds).items():
            found = got[f"descriptor.{head}"].astype(np.float64)
            assert found.shape == wanted.shape
            lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(wanted, axis=1)
            assert np.abs(1 - (found * wanted).sum(axis=1) / lengths).max() < largest, head


def test_the_sidecar_and_the_reference_file_have_every_head(artifact: OnnxArtifact, checkpoint: Path) -> None:
    loaded = load_artifact(artifact.path)
    assert loaded == artifact
    assert isinstance(loaded.spec, HeadsSpec)
    assert isinstance(loaded.range, HeadsRange)
    heads = read_heads(checkpoint)
    assert loaded.spec.heads == {name: head.spec for name, head in heads.items()}
    assert set(loaded.range.heads) == set(WIDTHS)
    assert loaded.range.logit_step == max(each.logit_step for each in loaded.range.heads.values())
    parameters = load_references(loaded.reference_path, loaded.spec)
    assert {name: each.spec for name, each in parameters.items()} == loaded.spec.heads
    alone = load_checkpoint(loaded.reference_path, prefix="text_pooling")  # one of them is a checkpoint of its own
    assert torch.equal(alone.clusters, mixture()["text_pooling.clusters"])


def test_every_head_is_judged_and_named(artifact: OnnxArtifact, half: OnnxArtifact, checkpoint: Path) -> None:
    report = validate(Candidate(path=artifact.path))
    assert (report.verdict, report.reference) == (Verdict.PASS, "oracle")
    assert {case.name.split(": ")[0] for case in report.cases if case.verdict is Verdict.PASS} == set(WIDTHS)
    assert validate(Candidate(path=half.path), against=artifact.path).verdict is Verdict.PASS
    assert validate(Candidate(path=artifact.path), against=checkpoint).verdict is Verdict.PASS


def test_two_heads_in_each_others_place_fail_by_name(artifact: OnnxArtifact, checkpoint: Path, tmp_path: Path) -> None:
    modules = {name: head.netvlad(checkpoint) for name, head in read_heads(checkpoint).items()}
    swapped = {**modules, HALVES[0]: modules[HALVES[1]], HALVES[1]: modules[HALVES[0]]}
    assert isinstance(artifact.spec, HeadsSpec)
    parameters = load_references(artifact.reference_path, artifact.spec)
    with open_runner(export_onnx(Heads(swapped), tmp_path / "swapped.onnx")) as runner:
        report = compare_heads(runner, parameters)
    assert report.verdict is Verdict.FAIL
    failed = {case.name.split(": ")[0] for case in report.cases if case.verdict is Verdict.FAIL}
    assert failed == set(HALVES)
    assert report.departure is not None
    assert report.departure.case.startswith(f"{HALVES[0]}: ")
    assert report.departure.tensor == "assignment_logits"


def test_a_head_that_proves_nothing_does_not_pass_for_the_others(artifact: OnnxArtifact) -> None:
    assert isinstance(artifact.spec, HeadsSpec)
    parameters = load_references(artifact.reference_path, artifact.spec)
    assert isinstance(artifact.range, HeadsRange)
    too_narrow = replace(artifact.range.heads[HALVES[0]], largest=1e-30)  # no case can be made of such features
    with open_runner(artifact) as runner:
        runner.range = replace(artifact.range, heads={**artifact.range.heads, HALVES[0]: too_narrow})
        report = compare_heads(runner, parameters)
    assert report.verdict is Verdict.NOT_JUDGED
    assert report.unseen == f"head {HALVES[0]}: no case proves anything"


def test_one_head_is_not_moved_by_the_others(artifact: OnnxArtifact) -> None:
    feeds = feeds_of()
    with open_runner(artifact) as runner:
        whole = runner.run(feeds)
        for head in WIDTHS:
            alone = OneHead(runner, head).run({"features": feeds[f"features.{head}"]})
            assert np.array_equal(alone["descriptor"], whole[f"descriptor.{head}"])
        with pytest.raises(UsageError, match=r"has no head 'pool': it has pool_layer_after, .*text_pooling"):
            OneHead(runner, "pool")


def test_feeds_that_do_not_fit_are_named(artifact: OnnxArtifact) -> None:
    feeds = feeds_of()
    with open_runner(artifact) as runner:
        with pytest.raises(InputError, match=r"takes features.pool_layer_after, .*, got features"):
            runner.run({"features": feeds["features.text_pooling"]})
        with pytest.raises(InputError, match=r"features.text_pooling have shape \(2, 3, 9\), expected \(.*, 10\)"):
            runner.run({**feeds, "features.text_pooling": feeds["features.pool_layer_before"]})
        with pytest.raises(InputError, match=r"all heads take one batch size, got .*text_pooling 1"):
            runner.run({**feeds, "features.text_pooling": feeds["features.text_pooling"][:1]})


def test_one_profile_holds_the_features_of_all_heads(artifact: OnnxArtifact) -> None:
    shapes = profiled_shapes(feeds_of(), artifact.inputs, artifact.spec)
    assert shapes == [(2, ROWS[head]) for head in WIDTHS]
    short, long = Profile.parse("1x1,2x10,4x20"), Profile.parse("1x1,2x10,4x90")
    assert fitting_profile((short, long), 2, 7, others=[(2, 20)]) == 0
    assert fitting_profile((short, long), 2, 7, others=[(2, 21)]) == 1
    with pytest.raises(InputError, match="num_features is 91, outside every profile"):
        fitting_profile((short, long), 2, 7, others=[(2, 91)])


@pytest.mark.rtx
def test_an_engine_takes_every_head_within_its_profiles(half: OnnxArtifact, tmp_path: Path) -> None:
    options = BuildOptions(flavor="tensorrt-rtx", profiles=(Profile.parse("1x1,2x10,4x20"),))
    engine = build(half, tmp_path / "heads.engine", options)
    assert (engine.inputs, engine.outputs, engine.spec, engine.range) == (
        half.inputs, half.outputs, half.spec, half.range,
    )  # fmt: skip
    assert engine.input_shapes(engine.profiles[0])["features.text_pooling"] == ((1, 1, 10), (2, 10, 10), (4, 20, 10))
    assert validate(Candidate(path=engine.path)).verdict in (Verdict.NOT_RUN, Verdict.PASS)


def test_bench_and_embed_serve_them(artifact: OnnxArtifact, tmp_path: Path) -> None:
    report = bench([Candidate.of(artifact)], num_features=4, duration_s=0.1, threads=1)
    assert report.verdict is Verdict.PASS
    feeds = feeds_of()
    np.save(tmp_path / "x.npy", feeds["features.retrieval.pool"])
    candidate, target = Candidate(path=artifact.path), tmp_path / "y.npy"
    with pytest.raises(UsageError, match=r"has the heads pool_layer_after, .*: choose one with --head"):
        embed(candidate, [tmp_path / "x.npy"], target)
    assert not target.exists()
    embed(Candidate(path=artifact.path), [tmp_path / "x.npy"], target, EmbedOptions(head="retrieval.pool"))
    assert np.abs(np.load(target) - expected(feeds)["retrieval.pool"]).max() < 1e-5


def test_the_command_line_exports_and_says_every_head(command: Command, tmp_path: Path) -> None:
    torch.save(temporally_aware(15, HALVES), tmp_path / "two.pth")
    assert error_of(command("export", "two.pth").err).endswith(
        "holds 2 NetVLADs: pool_layer_after, pool_layer_before: choose one with --prefix, or export them together with "
        "--all-heads"
    )
    outcome = command("export", "two.pth", "--all-heads")
    assert outcome.code == 0, outcome.err
    assert "  head pool_layer_before: K=4 D=9 G=0, descriptor 36 (d*K+k); logit step" in outcome.out
    assert command("inspect", "two.onnx").code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("export", "--all-heads"), "--all-heads needs a checkpoint"),
        (("export", "one.pth", "--all-heads"), "one.pth holds one NetVLAD: leave --all-heads out"),
        (("export", "two.pth", "--all-heads", "--prefix", "pool_layer_after"), "leave --prefix, sizes, --backbone and"),
        (("export", "two.pth", "--all-heads", "--masked"), "take no mask and give no probes: leave --masked and"),
        (("export", "two.pth", "--all-heads", "--resize", "64x64"), "the options for images out"),
        (("export", "gated.pth", "--all-heads"), "that soccernet-temporally-aware does not have: whiten.weight: pass"),
        (("export", "heir.pth", "--all-heads"), "heir.pth: holds aggregator, no NetVLAD: export one layer at a time"),
        (("export", "nan.pth", "--all-heads"), "nan.pth: pool_layer_before.clusters2 is not finite"),
    ],
)  # fmt: skip
def test_what_is_refused_says_what_to_do(command: Command, tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    two = temporally_aware(15, HALVES)
    torch.save(two, tmp_path / "two.pth")
    torch.save(temporally_aware(15, HALVES[:1]), tmp_path / "one.pth")
    torch.save({**two, "whiten.weight": torch.ones(5, 36)}, tmp_path / "gated.pth")
    torch.save({**two, "pool_layer_before.clusters2": torch.full((1, 9, 4), torch.nan)}, tmp_path / "nan.pth")
    torch.save({**two, **salad(1)}, tmp_path / "heir.pth")
    outcome = command(*options)
    assert outcome.code in (2, 65)
    assert said in error_of(outcome.err)
    assert not list(tmp_path.glob("*.onnx*"))


def test_names_that_become_one_are_refused() -> None:
    assert safe_names(["pooling.rgb", "a/b"]) == {"pooling.rgb": "pooling.rgb", "a/b": "a_b"}
    with pytest.raises(InputError, match="holds heads whose names become one in a graph: a/b, a_b"):
        safe_names(["a/b", "a_b"])


def test_other_heads_and_a_damaged_file_are_refused(artifact: OnnxArtifact, tmp_path: Path) -> None:
    assert isinstance(artifact.spec, HeadsSpec)
    with open_runner(artifact) as runner, pytest.raises(ParityError, match="has not the heads text: compare two"):
        compare_heads(runner, {"text": next(iter(load_references(artifact.reference_path, artifact.spec).values()))},
                      against=runner)  # fmt: skip
    with pytest.raises(ArtifactError, match="no reference file of the head text: reference parameters lack clusters"):
        load_references(artifact.reference_path, HeadsSpec(heads={"text": next(iter(artifact.spec.heads.values()))}))
    with pytest.raises(UsageError, match="has several heads: leave --bank and --queries out"):
        validate(Candidate(path=artifact.path), bank=tmp_path / "x.npy")
