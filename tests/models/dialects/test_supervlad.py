"""SuperVLAD: the ghosts that its file does not count, and the encoder that mixes the images of a batch."""

from pathlib import Path

import pytest

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.checkpoints import read_head
from tests.models.dialects.samples import SAMPLES, Source

pytestmark = pytest.mark.export


@pytest.mark.parametrize("name", ["supervlad", "supervlad-one-cluster"])
def test_it_must_be_chosen_since_the_file_may_lack_centroids(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError) as refused:
        read_head(SAMPLES[name].save(tmp_path))
    assert "lacks aggregation.centroids of deep-visual-geo-localization, the nearest dialect" in str(refused.value)
    assert str(refused.value).endswith(": choose --dialect if it is of supervlad or supervlad-one-cluster")


def test_the_dialect_says_how_many_clusters_are_ghosts(tmp_path: Path) -> None:
    path = SAMPLES["supervlad-one-cluster"].save(tmp_path)
    for dialect, sizes in (("supervlad", (2, 1)), ("supervlad-one-cluster", (1, 2))):
        spec = read_head(path, dialect=dialect).spec
        assert (spec.num_clusters, spec.num_ghost_clusters) == sizes
    with pytest.raises(InputError, match="has 5 clusters, supervlad-one-cluster has 3 clusters, ghosts among them"):
        read_head(SAMPLES["supervlad"].save(tmp_path), dialect="supervlad-one-cluster")


@pytest.mark.parametrize("backbone", [True, False])
def test_the_cross_image_encoder_is_refused_and_left_out_with_head_only(tmp_path: Path, backbone: bool) -> None:
    sample = SAMPLES["supervlad"]
    own = {name: each for name, each in sample.state.items() if backbone or not name.startswith("backbone.")}
    path = sample.save(tmp_path, {**own, "encoder.layers.0.linear1.weight": Source(0)(12, 9)})
    with pytest.raises(InputError, match=r"supervlad does not have: encoder.layers.0.linear1.weight: pass --head-only"):
        read_head(path, dialect="supervlad")
    assert read_head(path, dialect="supervlad", head_only=True).spec.num_clusters == 4


def test_a_file_of_the_benchmark_with_centroids_is_not_supervlad(tmp_path: Path) -> None:
    path = SAMPLES["deep-visual-geo-localization"].save(tmp_path)
    with pytest.raises(InputError, match=r"holds aggregation.centroids in the layer, which supervlad does not have"):
        read_head(path, dialect="supervlad")
