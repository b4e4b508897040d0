"""Eight dialects of one layer: a 1x1 convolution gives the logits, and local descriptors are L2-normalised first.

The class reads such a layer. The table below it has, for each dialect, the names of the tensors, the projection, and
the image input of the original code.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.dialects.base import AS_STORED, NORMALIZES, BackboneKeys, Dialect
from netvlad_deploy.models.head import Head
from netvlad_deploy.spec.images import ALIASED, AREA, ImageInput, Resize
from netvlad_deploy.spec.layer import CLUSTERS_FIRST, CLUSTERS_LAST, NetVLADSpec, Projection


@dataclass(frozen=True, kw_only=True)
class Convolution(Dialect):
    """A layer with a convolution (K,D,1,1), with or without a bias (K,), and centroids.

    Args:
        needs: the names of the convolution's weight and of the centroids, in this order, and other required names.
        kernel_axes: possible numbers of axes of length 1 in the convolution's weight.
        centroids_by_column: centroids are (D,K), not (K,D).
        flatten: index of value d of cluster k in a descriptor.
        projection: prefix of a linear layer (P,D*K) with a bias (P,) after the head; `{root}` in it is the head's root.
        projection_l2: projected descriptors are L2-normalised.
    """

    needs: tuple[str, ...] = ("conv.weight", "centroids")
    kernel_axes: tuple[int, ...] = (2,)
    centroids_by_column: bool = False
    flatten: str = CLUSTERS_FIRST
    projection: str | None = None
    projection_l2: bool = True

    def convert(self, state: Mapping[str, Tensor], root: str) -> Head:
        """Return the head with the convolution as (D,K) and the centroids as (1,D,K)."""
        weight, centroids = (root + name for name in self.needs[:2])
        bias = weight.removesuffix("weight") + "bias"
        num_clusters, feature_size = self._sizes(state, weight, centroids)
        by_column = state[centroids] if self.centroids_by_column else state[centroids].T
        tensors = {"clusters": state[weight].reshape(num_clusters, feature_size).T, "clusters2": by_column[None]}
        if with_bias := bias in state and "conv.bias" not in self.lacks:
            tensors["assignment_bias"] = self.vector(state, bias, num_clusters, weight)
        spec = NetVLADSpec(
            num_clusters=num_clusters,
            feature_size=feature_size,
            batch_norm=False,
            assignment_bias=with_bias,
            normalize_input=True,
            flatten=self.flatten,
        )
        others = self.others(state, root, (weight, centroids, *([bias] if with_bias else [])))
        head = Head(spec=spec, tensors=tensors, ignored=others)
        return self._followed(state, root, head)

    def _followed(self, state: Mapping[str, Tensor], root: str, head: Head) -> Head:
        """Return the head, with its projection if the checkpoint has one."""
        start = None if self.projection is None else self.projection.format(root=root)
        if start is None or not any(name.startswith(start) for name in state):
            return head
        used = {"projection.weight": f"{start}weight", "projection.bias": f"{start}bias"}
        weight = self.matrix(state, used["projection.weight"], head.spec.aggregate_size)
        bias = self.vector(state, used["projection.bias"], len(weight), used["projection.weight"])
        projection = Projection(size=len(weight), l2=self.projection_l2)
        return head.followed_by(projection, {"projection.weight": weight, "projection.bias": bias}, used.values())

    def _sizes(self, state: Mapping[str, Tensor], weight: str, centroids: str) -> tuple[int, int]:
        """Return K and D of the tensors of these names.

        Raises: InputError if their shapes do not fit.
        """
        first, second = tuple(state[weight].shape), tuple(state[centroids].shape)
        wanted = first[:2][::-1] if self.centroids_by_column else first[:2]
        if len(first) - 2 not in self.kernel_axes or any(side != 1 for side in first[2:]) or second != wanted:
            kernels = " or ".join(f"(K, D{', 1' * axes})" for axes in self.kernel_axes)
            layout = "(D, K)" if self.centroids_by_column else "(K, D)"
            raise InputError(f"{weight} {first} and {centroids} {second} are not {kernels} and {layout}")
        return first[0], first[1]


LAST_CONVOLUTION_OF = (
    f"local descriptors (batch, num_features, D): the last convolution of {{}}, before its ReLU; {NORMALIZES}"
)
FEATURE_MAP_OF = f"local descriptors (batch, num_features, D): every position of the {{}}'s feature map; {NORMALIZES}"
"""Templates of the required local descriptors, in which `{}` is the network."""

SOCCERNET_FRAMES = (
    "local descriptors (batch, num_features, D): a window of SoccerNet's frame features, after feature_extractor.* "
    "where there is one"
)

WHITENING_WEIGHT = "WPCA.0.weight"
"""Key of Patch-NetVLAD's whitening, which pytorch-netvlad's files never have."""

OPENIBL_MEAN = (0.48501960784313836, 0.4579568627450961, 0.4076039215686255)
"""Mean of RGB values from 0 to 1; its code then divides by 1/255. Source: README of yxgeee/OpenIBL."""

PYTORCH_NETVLAD_ENCODER = BackboneKeys(
    roots=("encoder.",),
    candidates=("vgg16", "alexnet"),
    assumed="images stay as large as they are (Patch-NetVLAD's files without whitening have the same keys, and it "
    "resizes to 480x640: --dialect patch-netvlad)",
)
"""The encoder of pytorch-netvlad, whose images are AS_STORED. Source: pittsburgh.py."""

MATCONVNET = BackboneKeys(
    roots=("backbone.",),
    candidates=("vgg16",),
    images=ImageInput(
        mean=(123.68, 116.779, 103.939), std=(1.0, 1.0, 1.0), resize=Resize(longest=1024, filter=AREA), orient=False
    ),
)
"""MatConvNet's VGG16 takes RGB values from 0 to 255, less the mean in `averageImage` of vgg-verydeep-16.

The rest of its image input is that of hloc's `extract_features.py`, which ignores the orientation in EXIF and shrinks
with OpenCV's area filter.
"""

PYTORCH_NETVLAD = Convolution(
    name="pytorch-netvlad",
    roots=("pool.",),
    absent=(WHITENING_WEIGHT,),
    preprocessing=LAST_CONVOLUTION_OF.format("VGG16 or AlexNet"),
    backbone=PYTORCH_NETVLAD_ENCODER,
)
"""Source: Nanne/pytorch-NetVlad, netvlad.py and main.py; its `vladv2` has a bias."""

PATCH_NETVLAD = Convolution(
    name="patch-netvlad",
    roots=("pool.",),
    projection="WPCA.0.",
    present=(WHITENING_WEIGHT,),
    preprocessing=LAST_CONVOLUTION_OF.format("VGG16"),
    backbone=replace(PYTORCH_NETVLAD_ENCODER, images=replace(AS_STORED, resize=Resize(size=(480, 640))), assumed=""),
)
"""A file of Patch-NetVLAD without whitening has the keys and the layer of pytorch-netvlad.

Source: QVPR/Patch-NetVLAD, models_generic.py, netvlad.py and datasets.py, which resizes images of Pillow.
"""

GEO_LOCALIZATION_NETWORKS = (
    *(f"resnet{depth}-{last}" for depth in (18, 50, 101) for last in ("conv4", "conv5")),
    *("vgg16", "alexnet", "cct384", "vit-b16"),
)
"""The benchmark's networks, by their names here."""

DEEP_VISUAL_GEO_LOCALIZATION = Convolution(
    name="deep-visual-geo-localization",
    roots=("aggregation.", "aggregation.0."),
    kernel_axes=(2, 1),
    projection="aggregation.1.",
    preprocessing="local descriptors (batch, num_features, D): every position of the backbone's feature map, or every "
    f"token but the class token; {NORMALIZES}",
    backbone=BackboneKeys(
        roots=("backbone.", "backbone.vit_model."),
        candidates=GEO_LOCALIZATION_NETWORKS,
        images=ImageInput(resize=Resize(size=(480, 640), filter=ALIASED), orient=False),
    ),
)
"""The dialect of heads on feature maps and of heads on tokens.

Its later code puts a ViT behind `vit_model.` and gives the head the tokens of patches; its earlier code, without that
name, gave the class token and left the head out.

Source: gmberton/deep-visual-geo-localization-benchmark, model/aggregation.py, network.py and datasets_ws.py, which
resizes tensors: with the torchvision of its time, before 0.17, that takes four pixels however much an image shrinks.
"""

OPENIBL = Convolution(
    name="openibl",
    roots=("net_vlad.", ""),
    lacks=("conv.bias", "out_projection.weight"),
    projection="pca_layer.",
    preprocessing="local descriptors (batch, num_features, D): every position of the base model's feature map, of "
    f"OpenIBL's VGG16 the last convolution before its ReLU; {NORMALIZES}",
    backbone=BackboneKeys(
        roots=("base_model.base.",),
        candidates=("vgg16",),
        images=ImageInput(
            mean=(255 * OPENIBL_MEAN[0], 255 * OPENIBL_MEAN[1], 255 * OPENIBL_MEAN[2]),
            std=(1.0, 1.0, 1.0),
            resize=Resize(size=(480, 640)),
            orient=False,
        ),
    ),
)
"""The dialect of OpenIBL's models, and of a bare layer without a bias.

Source: yxgeee/OpenIBL, ibl/models/netvlad.py, and ibl/utils/data/, which resizes images of Pillow.
"""

LYAKAAP = Convolution(
    name="lyakaap",
    roots=("net_vlad.", ""),
    needs=("conv.weight", "centroids", "conv.bias"),
    lacks=("out_projection.weight",),
    preprocessing=FEATURE_MAP_OF.format("base model"),
    backbone=BackboneKeys(
        roots=("base_model.",),
        candidates=(
            *(f"resnet{depth}-{last}" for depth in (18, 50, 101, 152) for last in ("conv3", "conv4", "conv5")),
            "vgg16",
            "alexnet",
        ),
    ),
)
"""The layer always has a bias. Source: lyakaap/NetVLAD-pytorch, netvlad.py."""

SOCCERNET = Convolution(
    name="soccernet",
    roots=("pool_layer.",),
    unused=("fc.",),
    preprocessing=f"{SOCCERNET_FRAMES}; {NORMALIZES}",
)
"""The pooling of SoccerNet's baseline, with a classifier `fc` on its descriptors.

Source: SilvioGiancola/SoccerNetv2-DevKit, Task1-ActionSpotting, Pooling/src/model.py, which builds its layer with
normalize_input=True and vladv2=False, and netvlad.py, which flattens (K,D).
"""

HLOC = Convolution(
    name="hloc",
    needs=("score_proj.weight", "centers"),
    roots=("netvlad.",),
    kernel_axes=(1,),
    centroids_by_column=True,
    flatten=CLUSTERS_LAST,
    projection="whiten.",
    preprocessing=LAST_CONVOLUTION_OF.format("VGG16"),
    backbone=MATCONVNET,
)
"""The torch module of hloc on MatConvNet's VGG16; its file has the centres c of the residual x - c, not negated.

Source: cvg/Hierarchical-Localization, hloc/extractors/netvlad.py.
"""

OPENPLACERECOGNITION = Convolution(
    name="openplacerecognition",
    needs=("conv.weight", "centroids", "out_projection.weight"),
    roots=("head.", ""),
    projection="{root}out_projection.",
    projection_l2=False,
    preprocessing=FEATURE_MAP_OF.format("backbone"),
)
"""Pytorch-netvlad's layer followed by a linear layer, whose result is the descriptor, not L2-normalised.

Source: OPR-Project/OpenPlaceRecognition, src/opr/modules/netvlad.py.
"""
