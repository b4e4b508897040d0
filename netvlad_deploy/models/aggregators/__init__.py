"""Layers other than NetVLAD that turn local descriptors into one descriptor.

`docs/dialects.md` has the table. An aggregator is a file here and an entry in AGGREGATORS and in
`export/fold_aggregators.py`; and one in `oracle/aggregators.py`, unless it takes a feature map: it is then exported
with its backbone alone, and golden images prove both.
"""

from collections.abc import Callable
from typing import Final

from netvlad_deploy.models.aggregators.base import Aggregator
from netvlad_deploy.models.aggregators.crn import CRN, ContextReweighting
from netvlad_deploy.models.aggregators.ghost_vlad import GHOST_VLAD, GhostVLAD
from netvlad_deploy.models.aggregators.hard_vlad import HARD_VLAD, HardVLAD
from netvlad_deploy.models.aggregators.hfnet import HFNET, HfNet
from netvlad_deploy.models.aggregators.salad import SALAD, Salad
from netvlad_deploy.spec.layer import AggregatorSpec

AGGREGATORS: Final[dict[str, Callable[[AggregatorSpec], Aggregator]]] = {
    SALAD: Salad,
    HARD_VLAD: HardVLAD,
    HFNET: HfNet,
    GHOST_VLAD: GhostVLAD,
    CRN: ContextReweighting,
}
"""By the name in a spec, the class of the torch module."""
