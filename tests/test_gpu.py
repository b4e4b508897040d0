"""What only a machine with an NVIDIA GPU can show. These tests have not been run on one yet."""

from pathlib import Path

import pytest

from netvlad_deploy.artifact import OnnxArtifact
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.spec.build_options import BuildOptions
from netvlad_deploy.spec.profiles import Profile
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.support.require import installed_version
from netvlad_deploy.tensorrt.api import MODULES
from netvlad_deploy.workflow.build import build
from netvlad_deploy.workflow.validate import validate

pytestmark = [pytest.mark.gpu, pytest.mark.export]


@pytest.mark.parametrize("flavor", sorted(MODULES))
def test_an_engine_is_built_and_equals_the_oracle(flavor: str, exported: OnnxArtifact, tmp_path: Path) -> None:
    if installed_version(flavor) is None:
        pytest.skip(f"{flavor} is not installed")
    engine = build(exported.path, tmp_path / "m.engine", BuildOptions(flavor=flavor, profiles=(Profile(),)))
    assert validate(Candidate(path=engine.path)).verdict is Verdict.PASS
