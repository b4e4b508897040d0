"""SALAD: tensors that do not fit, too few local descriptors, and what no descriptor depends on."""

from pathlib import Path

import pytest
import torch

from netvlad_deploy.errors import InputError
from netvlad_deploy.export.fold_salad import FoldedSalad
from netvlad_deploy.models.aggregators.salad import Salad, salad_spec
from netvlad_deploy.models.checkpoints import read_head
from netvlad_deploy.spec.graph_options import GraphOptions
from tests.models.aggregators.samples import SAMPLES

pytestmark = pytest.mark.export

SAMPLE = SAMPLES["salad"]


def module(folder: Path) -> Salad:
    read = read_head(SAMPLE.save(folder)).module("it")
    assert isinstance(read, Salad)
    return read


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("dust_bin", (2,), "aggregator.dust_bin has shape (2,), expected one number"),
        ("score.3.weight", (4, 7, 1, 1), "aggregator.score.3.weight takes 7 values, aggregator.score.0.weight gives 8"),
        ("score.0.weight", (8, 12, 3, 3), "has shape (8, 12, 3, 3), expected (O, I) or (O, I, 1, 1)"),
        ("score.0.weight", (8, 11, 1, 1), "the scores take 11 values, the clusters 12: they are of two layers"),
        ("score.0.bias", (9,), "do not fit: expected aggregator.score.0.bias (8,)"),
        ("norm.weight", (9,), "holds aggregator.norm.weight in the layer, which salad does not have"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError) as refused:
        read_head(SAMPLE.save(tmp_path, {f"aggregator.{name}": torch.ones(shape)}))
    assert said in str(refused.value)


def test_fewer_local_descriptors_than_clusters_are_not_a_number_and_as_many_are(tmp_path: Path) -> None:
    """The dustbin would hold a negative mass: the original gives NaN too."""
    own = module(tmp_path)
    folded = FoldedSalad(own, GraphOptions())
    few, enough = (tuple(torch.from_numpy(each).float() for each in SAMPLE.feeds(count).values()) for count in (3, 4))
    with torch.inference_mode():
        assert own(*few).isnan().any(dim=1).all()
        assert folded(*few).isnan().any(dim=1).all()
        assert (own(*enough) - folded(*enough)).abs().max() < 1e-6


@pytest.mark.parametrize("half", [False, True])
def test_large_scores_overflow_nowhere(tmp_path: Path, half: bool) -> None:
    """Scores of thousands, whose exponentials no type holds, and weights beyond FP16."""
    own = module(tmp_path)
    own.get_parameter("score.2.weight").data.mul_(300)
    own.get_parameter("cluster_features.2.weight").data.mul_(1e5)
    feeds = [torch.from_numpy(each) for each in SAMPLE.feeds(40).values()]
    folded = FoldedSalad(own, GraphOptions(precision="fp16" if half else "fp32"))
    with torch.inference_mode():
        got = folded(*(each.half() if half else each.float() for each in feeds)).double()
        wanted = own.double()(*feeds)
        assert own.score(feeds[0]).abs().max() > 1000
    assert float((1 - (got * wanted).sum(1)).abs().max()) < (2e-5 if half else 1e-6)


def test_the_last_bias_and_the_dustbin_cancel(tmp_path: Path) -> None:
    own = module(tmp_path).double()
    feeds = [torch.from_numpy(each) for each in SAMPLE.feeds().values()]
    with torch.inference_mode():
        before = own(*feeds)
        own.dust_bin.fill_(-9.0)
        own.get_parameter("score.2.bias").copy_(torch.linspace(-20, 20, 4))
        assert (before - own(*feeds)).abs().max() < 1e-12


def test_the_published_sizes() -> None:
    spec = salad_spec((768, 512, 256), (768, 512, 128), (768, 512, 64))
    assert (spec.descriptor_size, spec.inputs, spec.least_features) == (8448, ("features", "token"), 64)
