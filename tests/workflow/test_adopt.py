"""The verb `adopt`: a foreign file becomes an artifact that computes the same, or nothing is written."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from netvlad_deploy.artifact import OnnxArtifact, load_artifact
from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.parity import adoption
from netvlad_deploy.report.adopt import Adoption
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.arrays import cosines
from netvlad_deploy.support.files import sha256_file
from netvlad_deploy.workflow.adopt import AdoptOptions, adopt
from netvlad_deploy.workflow.validate import validate
from tests.command import Command, error_of
from tests.export.foreign.graphs import Looped, export_by_torch

pytestmark = [pytest.mark.export, pytest.mark.ort]
K, D = 6, 16


@pytest.fixture(scope="module")
def looped() -> Looped:
    torch.manual_seed(5)
    return Looped(K, D, bias=True)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory, looped: Looped) -> Path:
    return export_by_torch(looped, tmp_path_factory.mktemp("foreign") / "loop.onnx", torch.zeros(1, D, 2, 3))


@pytest.fixture(scope="module")
def adopted(foreign: Path) -> Adoption:
    return adopt(foreign, foreign.with_name("adopted.onnx"), AdoptOptions())


def descriptors(artifact: OnnxArtifact, features: np.ndarray) -> np.ndarray:
    with Candidate(path=artifact.path).open() as runner:
        return runner.run({"features": features.astype(runner.dtype)})["descriptor"]


def test_the_new_file_computes_what_the_old_one_did_in_few_nodes(adopted: Adoption, looped: Looped) -> None:
    maps = torch.randn(3, D, 4, 5)
    with torch.no_grad():
        expected = looped(maps).numpy()
    got = descriptors(adopted.artifact, maps.flatten(2).transpose(1, 2).numpy())
    assert 1 - cosines(got, expected).min() < 1e-6
    assert adopted.nodes == len(onnx.load(str(adopted.artifact.path.with_name("loop.onnx"))).graph.node) > 400
    assert adopted.adopted_nodes == len(onnx.load(str(adopted.artifact.path)).graph.node) <= 30


def test_it_is_an_artifact_whose_parent_is_the_old_file(adopted: Adoption, foreign: Path) -> None:
    artifact = load_artifact(adopted.artifact.path)
    assert artifact.parent is not None
    assert (artifact.parent.name, artifact.parent.sha256) == ("loop.onnx", sha256_file(foreign))
    assert validate(Candidate(path=artifact.path)).verdict is Verdict.PASS
    assert [proof.verdict for proof in adopted.proofs] == [Verdict.PASS] * 2
    assert adopted.proofs[1].reference == "loop.onnx"


def test_it_can_be_had_in_fp16(foreign: Path, looped: Looped, tmp_path: Path) -> None:
    half = adopt(foreign, tmp_path / "half.onnx", AdoptOptions(graph=GraphOptions(precision="fp16")))
    assert half.artifact.dtypes["features"] == "float16"
    assert half.proofs[1].precision == "fp16"
    assert validate(Candidate(path=half.artifact.path)).verdict is Verdict.PASS


def test_nothing_is_written_where_the_proof_fails(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old head passes, the new graph does not."""
    passed = iter((True, False))
    check = adoption.check_passed

    def second_fails(report: object) -> None:
        if not next(passed):
            raise InputError("it computes something else")
        check(report)  # type: ignore[arg-type]

    monkeypatch.setattr(adoption, "check_passed", second_fails)
    with pytest.raises(InputError, match=r"loop\.onnx: it computes something else"):
        adopt(foreign, tmp_path / "m.onnx", AdoptOptions())
    assert not list(tmp_path.iterdir())


def test_targets_are_looked_at_first(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not end in \.onnx"):
        adopt(foreign, tmp_path / "m.engine", AdoptOptions())
    with pytest.raises(UsageError, match="cannot be the target too"):
        adopt(foreign, foreign, AdoptOptions(), force=True)
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="exists already"):
        adopt(foreign, tmp_path / "m.onnx", AdoptOptions())


def test_the_command_line_adopts_and_says_what_it_found(command: Command, foreign: Path, tmp_path: Path) -> None:
    outcome = command("adopt", foreign)
    assert outcome.code == 0
    assert "NetVLAD found at /Softmax, " in outcome.out
    assert "PASS  the head of loop.onnx against oracle, fp32: 13 cases" in outcome.out
    assert "PASS  loop-adopted.onnx against loop.onnx, fp32: 13 cases" in outcome.out
    assert (tmp_path / "loop-adopted.onnx.json").is_file()
    printed = json.loads(command("adopt", foreign, "--json", "--force").out)
    assert printed["schema"] == "netvlad-deploy/adopt/1"
    assert printed["head"] == "/Softmax"
    assert "has no NetVLAD 'x'" in error_of(command("adopt", foreign, "--head", "x", "-o", "n.onnx").err)
    assert "made by this package" in error_of(command("adopt", "loop-adopted.onnx", "-o", "n.onnx").err)
    assert "take it over: netvlad-deploy adopt" in error_of(command("validate", foreign).err)
