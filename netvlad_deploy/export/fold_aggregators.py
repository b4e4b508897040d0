"""Aggregators other than NetVLAD as they are exported: rewritten for the graph, and rounded to its precision."""

from collections.abc import Callable
from typing import Final, TypeAlias

from torch import nn

from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.fold_crn import FoldedCRN
from netvlad_deploy.export.fold_ghost_vlad import FoldedGhostVLAD
from netvlad_deploy.export.fold_hard_vlad import FoldedHardVLAD
from netvlad_deploy.export.fold_head import check_foldable
from netvlad_deploy.export.fold_hfnet import FoldedHfNet
from netvlad_deploy.export.fold_salad import FoldedSalad
from netvlad_deploy.models.affine import is_finite
from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.crn import CRN
from netvlad_deploy.models.aggregators.ghost_vlad import GHOST_VLAD
from netvlad_deploy.models.aggregators.hard_vlad import HARD_VLAD
from netvlad_deploy.models.aggregators.hfnet import HFNET
from netvlad_deploy.models.aggregators.salad import SALAD
from netvlad_deploy.spec.graph_options import GraphOptions

Fold: TypeAlias = Callable[[Aggregator, GraphOptions], nn.Module]
"""A function that returns the module to trace: it takes the inputs of the spec and returns the descriptor (B,P)."""

FOLDS: Final[dict[str, Fold]] = {
    SALAD: FoldedSalad,
    HARD_VLAD: FoldedHardVLAD,
    HFNET: FoldedHfNet,
    GHOST_VLAD: FoldedGhostVLAD,
    CRN: FoldedCRN,
}
"""The folds by the name in the aggregator's spec."""


def fold_aggregator(module: Aggregator, options: GraphOptions) -> nn.Module:
    """Return the module that is traced for an aggregator, in eval mode.

    Raises: FoldError if the module is in training mode, or a value is not finite, before or after rounding.
    """
    check_foldable(module)
    folded = FOLDS[module.spec.name](module, options)
    for name, tensor in folded.state_dict().items():
        if not is_finite(tensor):
            raise FoldError(f"folded {name} is not finite: a weight is too large for {options.precision}")
    return folded.eval()
