"""Several heads folded one by one, as one module that the export traces: `features.NAME` to the stages of each."""

from collections.abc import Iterable

from torch import Tensor, nn

from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.audit import audit
from netvlad_deploy.export.fold_head import FoldedNetVLAD, fold
from netvlad_deploy.models.heads import Heads
from netvlad_deploy.spec.graph_options import GraphOptions, HeadsRange


class FoldedHeads(nn.Module):
    """Local descriptors (B,N_i,D_i) of each head to the stages of each, head by head."""

    def __init__(self, heads: Iterable[FoldedNetVLAD]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Return the stages of the first head, then those of the second, and so on."""
        return tuple(stage for head, each in zip(self.heads, features, strict=True) for stage in head(each))


def fold_heads(module: Heads, options: GraphOptions) -> tuple[FoldedHeads, HeadsRange, tuple[str, ...]]:
    """Return the heads folded, in eval mode, the range of the features of each, and what `audit` warns of.

    Raises: FoldError as `fold` and `audit`, with the name of the head.
    """
    folded, ranges, warnings = [], {}, []
    for name, head in module.by_name().items():
        try:
            folded.append(fold(head, options))
            ranges[name], findings = audit(folded[-1])
        except FoldError as error:
            raise FoldError(f"head {name}: {error}") from error
        warnings += [f"head {name}: {finding}" for finding in findings]
    return FoldedHeads(folded).eval(), HeadsRange.of(ranges), tuple(warnings)
