"""AnyLoc's vocabulary: a file of one tensor without a name, read as the user says and not otherwise."""

from pathlib import Path

import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.hard_vlad import HardVLAD, hard_vlad_spec
from netvlad_deploy.models.checkpoints import find_head, read_head
from netvlad_deploy.spec.layer import CLUSTERS_FIRST
from tests.command import Command

pytestmark = pytest.mark.export

CENTRES = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(CENTRES, tmp_path / "c_centers.pt")
    return tmp_path / "c_centers.pt"


def test_a_tensor_without_a_name_is_refused_without_a_dialect(path: Path) -> None:
    with pytest.raises(InputError, match="holds one tensor instead of tensors by name: choose --dialect if it is a"):
        read_head(path)
    with pytest.raises(InputError, match="holds one tensor instead of tensors by name"):
        read_head(path, dialect="openibl")
    torch.save({"c_centers": CENTRES}, path)
    with pytest.raises(InputError, match=r"choose --dialect if it is of anyloc or anyloc-soft$"):
        read_head(path)


@pytest.mark.parametrize("dialect", ["anyloc", "anyloc-soft"])
def test_centres_of_another_shape_are_refused(path: Path, dialect: str) -> None:
    torch.save(CENTRES[None], path)
    with pytest.raises(InputError, match=r"c_centers has shape \(1, 4, 6\), expected \(K, D\)"):
        read_head(path, dialect=dialect)
    torch.save(CENTRES.log(), path)
    with pytest.raises(InputError, match="c_centers is not finite"):
        read_head(path, dialect=dialect)


def test_the_dialect_says_how_it_assigns_and_what_is_assumed(path: Path, command: Command) -> None:
    hard, soft = (find_head(path, dialect=dialect) for dialect in ("anyloc", "anyloc-soft"))
    assert hard.spec == hard_vlad_spec(4, 6)
    assert (soft.spec.num_clusters, soft.spec.normalize_input, soft.spec.flatten) == (4, True, CLUSTERS_FIRST)
    said = "hard assignment to the centre of the largest cosine, L2-normalised local descriptors and clusters"
    assert f"assumed: {said}" in command("inspect", path, "--dialect", "anyloc").out
    exported = command("export", path, "--dialect", "anyloc", "-o", path.parent / "m.onnx")
    assert exported.code == 0
    assert f"assumed: {said}" in exported.err
    assert "a softmax of cosines at the temperature 1" in soft.assumed


def test_a_descriptor_of_zeros_belongs_to_the_first_centre() -> None:
    """As the original has it: all cosines are 0, and of equal ones the first counts."""
    module = HardVLAD(hard_vlad_spec(4, 6)).eval()
    module.load_state_dict({"centres": CENTRES})
    clusters = module(torch.zeros(1, 3, 6)).reshape(4, 6)
    assert torch.allclose(clusters[0], -torch.nn.functional.normalize(CENTRES[0], dim=0))
    assert not clusters[1:].any()
