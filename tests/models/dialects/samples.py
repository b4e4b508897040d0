"""A random checkpoint of each dialect, with the tensors that its own code saves beside the head."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.models.dialects import formulas
from tests.models.dialects.formulas import Formula
from tests.models.dialects.sample import Sample as Sample
from tests.models.dialects.sample import Source as Source
from tests.models.dialects.sample import State as State
from tests.models.dialects.tensorflow_samples import TENSORFLOW_SAMPLES


def pointnetvlad(seed: int, *, batch_norm: bool, gating: bool = True) -> State:
    random, clusters, width = Source(seed), 4, 9
    head = {"cluster_weights": random(width, clusters), "cluster_weights2": random(1, width, clusters)}
    head |= random.batch_norm(clusters, "bn1") if batch_norm else {"cluster_biases": random(clusters)}
    head |= {"hidden1_weights": random(width * clusters, 6), **random.batch_norm(6, "bn2")}
    if gating:
        head["context_gating.gating_weights"] = random(6, 6)
        added = random.batch_norm(6, "context_gating.bn1")
        head |= added if batch_norm else {"context_gating.gating_biases": random(6)}
    encoder = {"point_net.conv1.weight": random(8, 1, 1, 3), **random.batch_norm(8, "point_net.bn2")}
    return {**encoder, **{f"net_vlad.{name}": tensor for name, tensor in head.items()}}


def overlaptransformer(seed: int) -> State:
    """Return the tensors of the whole network: convolutions, a transformer, layers never called, and the head."""
    random, size = Source(seed), 6
    beside = {
        "conv1.weight": random(16, 1, 5, 1), "transformer_encoder.layers.0.linear1.weight": random(8, 4),
        "convLast2.weight": random(9, 8, 1, 1), "linear.weight": random(size, 70), "linear1.weight": random(size, size),
        **random.batch_norm(16, "bn1"), **random.batch_norm(size, "bnl1"),
    }  # fmt: skip
    head = pointnetvlad(seed, batch_norm=False)
    return {**beside, **{name: tensor for name, tensor in head.items() if name.startswith("net_vlad.")}}


def cvtnet(seed: int) -> State:
    """Return the tensors of the whole network: two extractors of features, attention as wide as descriptors, heads."""
    random = Source(seed)
    state = {
        "featureExtracter_RI.conv1.weight": random(16, 5, 2, 1), "featureExtracter_BEV.conv1.weight": random(6, 5, 2),
        "featureExtracter_RI.transformer_encoder.layers.0.linear1.weight": random(8, 6), "norm_1.alpha": random(6),
        "attn1.q_linear.weight": random(6, 6), "ff1.linear_1.weight": random(9, 6),
    }  # fmt: skip
    for number, layer in enumerate(("net_vlad", "net_vlad_ri", "net_vlad_bev")):
        head = pointnetvlad(seed + number, batch_norm=False)
        state |= {name.replace("net_vlad", layer): each for name, each in head.items() if name.startswith("net_vlad.")}
    return state


def overlapnetvlad(seed: int) -> State:
    head = pointnetvlad(seed, batch_norm=True)
    own = {name.removeprefix("net_"): tensor for name, tensor in head.items() if name.startswith("net_vlad.")}
    random = Source(seed)
    return {"conv.0.weight": random(9, 9, 3, 3), "conv.0.bias": random(9), "conv.2.weight": random(9, 9, 3, 3), **own}


def temporally_aware(seed: int, layers: tuple[str, ...]) -> State:
    random, clusters, width = Source(seed), 4, 9
    state = {"fc.weight": random(18, len(layers) * clusters * width), "fc.bias": random(18)}
    for layer in layers:
        state[f"{layer}.clusters"] = random(width, clusters, scale=3.0)
        state[f"{layer}.clusters2"] = random(1, width, clusters, scale=0.4)
    return state


def hloc(seed: int) -> State:
    random, clusters, width = Source(seed), 5, 8
    head = random.convolution(clusters, width, 12.0, "", kernel="i")
    return {
        **random.vgg("backbone."),
        "netvlad.score_proj.weight": head["conv.weight"],
        "netvlad.centers": head["centroids"].T.contiguous(),
    }


def collaborative_experts(seed: int, clusters: int, ghosts: int, width: int, scale: float) -> Sample:
    state = Source(seed).columns(clusters, ghosts, width, scale)
    return Sample(dialect="collaborative-experts", state=state, formula=formulas.collaborative_experts, width=width)


def convolution(
    dialect: str, formula: Formula, layer: str, sizes: tuple[int, int], alpha: float, **more: Any
) -> Sample:
    """Return a sample of the convolution family; `bias`, `kernel` and `beside` choose its other tensors."""
    clusters, width = sizes
    random = Source(len(dialect) + clusters)
    state = random.convolution(clusters, width, alpha, layer, more.pop("kernel", "ij"))
    if more.pop("bias", False):
        state[f"{layer}conv.bias"] = random(clusters, scale=2)
    beside: Callable[[Source], State] = more.pop("beside", lambda _: {})
    return Sample(dialect=dialect, formula=formula, width=width, state={**beside(random), **state}, **more)


def projection(weight: str, *shape: int) -> Callable[[Source], State]:
    """Return a projection as it stands in a state."""
    bias = weight.removesuffix("weight") + "bias"
    return lambda random: {weight: random(*shape), bias: random(shape[0])}


def without_batch_norm(sample: Sample) -> Sample:
    """Return a checkpoint of a layer that has none."""
    state = {name: tensor for name, tensor in sample.state.items() if "batch_norm" not in name}
    return Sample(dialect=sample.dialect, state=state, formula=sample.formula, width=sample.width)


def text_pooling(seed: int) -> Sample:
    random = Source(seed)
    text, audio = random.columns(6, 1, 10, 0.6), random.columns(3, 0, 7, 0.6)
    state = {f"module.text_pooling.{name}": tensor for name, tensor in text.items()}
    state |= {f"module.video_GU.{name}": tensor for name, tensor in random.vgg("").items()}
    state |= {f"module.pooling.audio.{name}": tensor for name, tensor in audio.items()}
    return Sample(
        dialect="collaborative-experts", state=state, formula=formulas.text_pooling, width=10, prefix="text_pooling"
    )


def relja(seed: int, *, pca: bool) -> Sample:
    """Return the tensors that are read of a `.mat` file; without PCA of the layer that has a bias."""
    random, clusters, width = Source(seed), 4, 9
    head = random.convolution(clusters, width, 10.0, "", kernel="")
    state = {"vlad.assignment": head["conv.weight"].T.contiguous(), "vlad.negated_centres": -head["centroids"].T}
    state |= {**random.vgg("backbone."), "average_image": torch.tensor([123.68, 116.78, 103.94])}
    if not pca:
        bias = random(clusters, scale=2)
        return Sample(
            dialect="relja",
            state={**state, "vlad.assignment_bias": bias},
            width=width,
            formula=formulas.relja_before_pca,
        )
    state |= {"pca.weight": random(36, 7), "pca.bias": random(7)}
    return Sample(dialect="relja", state=state, width=width, formula=formulas.relja, before=formulas.relja_before_pca)


def supervlad(seed: int, columns: int, kernel: str = "ij") -> State:
    random = Source(seed)
    head = random.convolution(columns, 9, 8.0, "aggregation.", kernel)
    return {**random.vgg("backbone."), "aggregation.conv.weight": head["aggregation.conv.weight"]}


PYTORCH, BENCHMARK = "pytorch-netvlad", "deep-visual-geo-localization"

SAMPLES: dict[str, Sample] = {
    "collaborative-experts": collaborative_experts(1, 6, 2, 10, 0.5),
    "collaborative-experts, no ghosts": collaborative_experts(2, 5, 0, 12, 2.0),
    "collaborative-experts, no BatchNorm": without_batch_norm(collaborative_experts(3, 4, 3, 8, 1.0)),
    "collaborative-experts, clusters alone": replace(
        without_batch_norm(collaborative_experts(18, 4, 0, 8, 1.0)), chosen=True
    ),
    "collaborative-experts, text_pooling": text_pooling(4),
    "mixture-of-embedding-experts": Sample(
        dialect="mixture-of-embedding-experts",
        state=Source(5).columns(5, 0, 9, 0.8),
        formula=formulas.mixture_of_embedding_experts,
        width=9,
        chosen=True,
    ),
    PYTORCH: convolution(
        PYTORCH, formulas.pytorch_netvlad, "pool.", (6, 11), 9.0, beside=lambda r: r.vgg("encoder.")
    ),
    f"{PYTORCH}, vladv2": convolution(PYTORCH, formulas.pytorch_netvlad, "pool.", (5, 7), 20.0, bias=True),
    f"{PYTORCH}, parallel": convolution(
        PYTORCH, formulas.pytorch_netvlad_parallel, "pool.module.", (4, 9), 5.0,
        beside=lambda r: r.vgg("encoder.module."),
    ),
    "patch-netvlad": convolution(
        "patch-netvlad", formulas.patch_netvlad, "pool.", (4, 6), 15.0, before=formulas.pytorch_netvlad,
        beside=projection("WPCA.0.weight", 8, 24, 1, 1),
    ),
    BENCHMARK: convolution(
        BENCHMARK, formulas.deep_visual_geo_localization, "aggregation.", (5, 8), 8.0,
        beside=lambda r: r.vgg("backbone."),
    ),
    f"{BENCHMARK}, tokens": convolution(
        BENCHMARK, formulas.deep_visual_geo_localization, "aggregation.", (7, 6), 4.0, kernel="i"
    ),
    f"{BENCHMARK}, fc": convolution(
        BENCHMARK, formulas.deep_visual_geo_localization_fc, "aggregation.0.", (3, 8), 8.0,
        before=formulas.deep_visual_geo_localization_before_fc,
        beside=projection("aggregation.1.weight", 5, 24),
    ),
    "openibl": convolution(
        "openibl", formulas.openibl, "net_vlad.", (6, 9), 25.0, beside=lambda r: r.vgg("base_model.base.")
    ),
    "openibl, pca_layer": convolution(
        "openibl", formulas.openibl_pca, "net_vlad.", (5, 6), 10.0, before=formulas.openibl,
        beside=projection("pca_layer.weight", 7, 30, 1, 1),
    ),
    "lyakaap": convolution(
        "lyakaap", formulas.lyakaap, "net_vlad.", (4, 10), 7.0, bias=True, beside=lambda r: r.vgg("base_model.")
    ),
    "lyakaap, bare": convolution("lyakaap", formulas.lyakaap_bare, "", (6, 8), 12.0, bias=True),
    "soccernet": convolution(
        "soccernet", formulas.soccernet, "pool_layer.", (5, 9), 6.0, beside=projection("fc.weight", 4, 45)
    ),
    "soccernet-temporally-aware": Sample(
        dialect="soccernet-temporally-aware", state=temporally_aware(14, ("pool_layer",)), width=9,
        formula=formulas.soccernet_temporally_aware,
    ),
    "soccernet-temporally-aware, NetVLAD++": Sample(
        dialect="soccernet-temporally-aware", state=temporally_aware(15, ("pool_layer_before", "pool_layer_after")),
        width=9, formula=formulas.soccernet_after, prefix="pool_layer_after",
    ),
    "hloc": Sample(dialect="hloc", state=hloc(6), formula=formulas.hloc, width=8),
    "hloc, whiten": Sample(
        dialect="hloc", state={**hloc(7), **projection("whiten.weight", 6, 40)(Source(8))},
        formula=formulas.hloc_whiten, before=formulas.hloc, width=8,
    ),
    "pointnetvlad": Sample(
        dialect="pointnetvlad", state=pointnetvlad(9, batch_norm=True), formula=formulas.pointnetvlad, width=9,
        before=formulas.pointnetvlad_before_projection,
    ),
    "pointnetvlad, cluster_biases": Sample(
        dialect="pointnetvlad", state=pointnetvlad(10, batch_norm=False), formula=formulas.pointnetvlad, width=9,
        before=formulas.pointnetvlad_before_projection,
    ),
    "pointnetvlad, no gating": Sample(
        dialect="pointnetvlad", state=pointnetvlad(11, batch_norm=True, gating=False), width=9,
        formula=formulas.pointnetvlad_ungated, before=formulas.pointnetvlad_before_projection,
    ),
    "overlaptransformer": Sample(
        dialect="overlaptransformer", state=overlaptransformer(16), formula=formulas.overlaptransformer, width=9,
        before=formulas.before_projection_of("net_vlad.", normalized=True),
    ),
    "cvtnet": Sample(
        dialect="cvtnet", state=cvtnet(60), formula=formulas.cvtnet, width=9, prefix="net_vlad",
        before=formulas.before_projection_of("net_vlad.", normalized=True),
    ),
    "cvtnet-view": Sample(
        dialect="cvtnet-view", state=cvtnet(60), formula=formulas.cvtnet_view, width=9, prefix="net_vlad_ri",
        before=formulas.before_projection_of("net_vlad_ri.", normalized=False),
    ),
    "overlapnetvlad": Sample(
        dialect="overlapnetvlad", state=overlapnetvlad(17), formula=formulas.overlapnetvlad, width=9,
        before=formulas.before_projection_of("vlad.", normalized=False),
    ),
    "openplacerecognition": convolution(
        "openplacerecognition", formulas.openplacerecognition, "head.", (4, 7), 11.0,
        before=formulas.openplacerecognition_before_projection,
        beside=lambda r: {**r.vgg("backbone."), **projection("head.out_projection.weight", 7, 28)(r)},
    ),
    "openplacerecognition, bare": convolution(
        "openplacerecognition", formulas.bare_openplacerecognition, "", (5, 6), 8.0, bias=True,
        before=formulas.bare_openplacerecognition_before_projection,
        beside=projection("out_projection.weight", 6, 30),
    ),
    "supervlad": Sample(
        dialect="supervlad", state=supervlad(20, 5), formula=formulas.supervlad, width=9, chosen=True
    ),
    "supervlad, tokens": Sample(
        dialect="supervlad", state=supervlad(21, 4, "i"), formula=formulas.supervlad, width=9, chosen=True
    ),
    "supervlad-one-cluster": Sample(
        dialect="supervlad-one-cluster", state=supervlad(22, 3), formula=formulas.supervlad_one_cluster, width=9,
        chosen=True,
    ),
    "anyloc-soft": Sample(
        dialect="anyloc-soft", state={"c_centers": Source(24)(5, 8, scale=0.3)}, formula=formulas.anyloc_soft, width=8,
        chosen=True,
    ),
    "relja": relja(12, pca=True),
    "relja, vladv2": relja(13, pca=False),
    **TENSORFLOW_SAMPLES,
}  # fmt: skip
