"""CRN of the deep visual geo-localization benchmark: a NetVLAD whose assignments are weighed by a mask of the context.

The mask comes from the whole feature map, halved by an average over 3x3, through convolutions of three sizes, and
doubled again. So it needs the feature map, and one of even height and width.

Source: gmberton/deep-visual-geo-localization-benchmark, model/aggregation.py, CRN and CRNModule.
Kim et al. 2017, "Learned contextual feature reweighting for image geo-localization".
"""

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.spec.layer import AggregatorSpec

CRN: Final = "crn"
CONTEXT_FILTERS: Final = {"filter_3_3": 3, "filter_5_5": 5, "filter_7_7": 7}
"""Names of the convolutions of the context, with the height and width of their kernels."""


def crn_spec(num_clusters: int, feature_size: int, filters: Mapping[str, int]) -> AggregatorSpec:
    """Return the spec of K clusters; `filters` has the number of channels that each of CONTEXT_FILTERS gives.

    >>> spec = crn_spec(64, 256, {"filter_3_3": 32, "filter_5_5": 32, "filter_7_7": 20})
    >>> spec.descriptor_size, spec.takes_map
    (16384, True)
    """
    return AggregatorSpec(
        name=CRN,
        descriptor_size=num_clusters * feature_size,
        unit_length=True,
        feature_size=feature_size,
        takes_map=True,
        settings={"num_clusters": num_clusters, **filters},
    )


class ContextReweighting(Aggregator):
    """Turn local descriptors (B,N,D), and the feature map (B,D,h,w) that they are of, into descriptors (B, K*D).

    Index k*D + d. Local descriptors are L2-normalised first, those of the map too.
    """

    def __init__(self, spec: AggregatorSpec) -> None:
        super().__init__(spec)
        size = {name: int(value) for name, value in spec.settings.items()}
        self.clusters = nn.Parameter(torch.randn(spec.feature_size, size["num_clusters"]))
        self.centres = nn.Parameter(torch.randn(size["num_clusters"], spec.feature_size))
        self.filters = nn.ModuleDict(
            {
                name: nn.Conv2d(spec.feature_size, size[name], side, padding=side // 2)
                for name, side in CONTEXT_FILTERS.items()
            }
        )
        self.accumulation = nn.Conv2d(sum(size[name] for name in CONTEXT_FILTERS), 1, 1)

    def forward(self, features: Tensor, *others: Tensor) -> Tensor:
        """Return the descriptors (B, K*D) of local descriptors (B,N,D) and their feature map (B,D,h,w).

        Raises: InputError if height or width of the map is odd, of which the original's mask has another size.
        """
        (feature_map,) = others
        if feature_map.shape[2] % 2 or feature_map.shape[3] % 2:
            sides = "x".join(map(str, feature_map.shape[2:]))
            raise InputError(f"{CRN} needs a feature map of even height and width, got {sides}: pass another --resize")
        features = functional.normalize(features, dim=2)
        mask = self._mask(functional.normalize(feature_map, dim=1)).flatten(1).unsqueeze(2)  # (B,N,1)
        shares = (features @ self.clusters).softmax(2) * mask  # (B,N,K)
        sums = shares.transpose(1, 2) @ features  # (B,K,N) x (B,N,D)
        residuals = sums - shares.sum(1).unsqueeze(2) * self.centres  # (B,K,1) * (K,D)
        return functional.normalize(functional.normalize(residuals, dim=2).flatten(1), dim=1)

    def _mask(self, feature_map: Tensor) -> Tensor:
        """Return the weights (B,1,h,w) of the positions of a feature map."""
        halved = functional.avg_pool2d(feature_map, kernel_size=3, stride=2, ceil_mode=True)
        context = torch.cat([convolution(halved) for convolution in self.filters.values()], dim=1).relu()
        return functional.interpolate(self.accumulation(context).relu(), scale_factor=2, mode="bilinear")
