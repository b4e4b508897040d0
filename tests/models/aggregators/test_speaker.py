"""GhostVLAD of speaker recognition from the file that Keras writes, and shapes that do not fit."""

from pathlib import Path

import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.checkpoints import read_head
from tests.models.aggregators.samples import SAMPLES

pytest.importorskip("h5py")
from tests.models.keras_files import write_keras

pytestmark = pytest.mark.export

SAMPLE = SAMPLES["vgg-speaker-recognition"]


def test_a_model_of_keras_gives_the_same_head(tmp_path: Path) -> None:
    state = {name: tensor.numpy() for name, tensor in {**SAMPLE.beside, **SAMPLE.state}.items()}
    head = read_head(write_keras(tmp_path / "weights.h5", state))
    wanted = read_head(SAMPLE.save(tmp_path))
    assert (head.dialect, head.spec) == (SAMPLE.dialect, wanted.spec)
    assert all(torch.equal(head.tensors[name], tensor) for name, tensor in wanted.tensors.items())
    assert head.spec.settings == {"num_clusters": 4, "num_ghost_clusters": 2}
    assert set(head.ignored) == set(SAMPLE.beside)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("gvlad_pool.centers", (5, 8), "are not (K+G, D) and (h, 1, C, K+G)"),
        ("gvlad_center_assignment.kernel", (3, 2, 5, 6), "are not (K+G, D) and (h, 1, C, K+G)"),
        ("gvlad_center_assignment.bias", (5,), "do not fit: expected gvlad_center_assignment.bias (6,)"),
        ("fc6.kernel", (33, 6), "fc6.kernel has shape (33, 6), expected (K*8, P)"),
        ("fc6.kernel", (56, 6), "fc6.kernel has shape (56, 6), expected (K*8, P)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError) as refused:
        read_head(SAMPLE.save(tmp_path, {name: torch.ones(shape)}))
    assert said in str(refused.value)
