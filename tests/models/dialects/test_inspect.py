"""`inspect` describes a checkpoint without exporting it."""

import json
from pathlib import Path

import pytest

from tests.command import Command, error_of
from tests.models.dialects.samples import SAMPLES

pytestmark = pytest.mark.export


@pytest.mark.parametrize("name", SAMPLES)
def test_every_dialect_is_named(command: Command, tmp_path: Path, name: str) -> None:
    sample = SAMPLES[name]
    path = sample.save(tmp_path)
    chosen = ["--dialect", sample.dialect] if sample.chosen else []
    outcome = command("inspect", path, "--prefix", sample.prefix, *chosen, "--json")
    assert outcome.code == 0, outcome.err
    record = json.loads(outcome.out)
    assert (record["schema"], record["dialect"]) == ("netvlad-deploy/inspect/1", sample.dialect)
    assert record["projections"] == []
    assert bool(record["spec"]["projection"]) == sample.projected
    assert record["spec"]["feature_size"] == sample.width
    text = command("inspect", path, "--prefix", sample.prefix, *chosen).out
    assert f"a checkpoint in the dialect {sample.dialect}" in text
    assert ("then a projection to" in text) == sample.projected
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.data
def test_the_head_of_others_is_described(command: Command, data: Path) -> None:
    outcome = command("inspect", data / "heads" / "soccernet_netvlad_v1.pth.tar")
    for part in ("dialect soccernet", "K=64 D=512 G=0", "(k*D+d): input L2-normalised", "beside it: fc."):
        assert part in outcome.out


def test_options_of_artifacts_are_refused(command: Command, tmp_path: Path) -> None:
    path = next(iter(SAMPLES.values())).save(tmp_path)
    for option in (["--load"], ["--expect-sha256", "0"]):
        outcome = command("inspect", path, *option)
        assert (outcome.code, "is a checkpoint" in error_of(outcome.err)) == (2, True)
