"""Several heads folded one by one, as one module that the export traces: `features.NAME` to the stages of each."""

from collections.abc import Mapping

from torch import Tensor, nn

from netvlad_deploy.errors import FoldError
from netvlad_deploy.export.audit import audit
from netvlad_deploy.export.fold_head import FoldedNetVLAD, fold
from netvlad_deploy.models.heads import Heads
from netvlad_deploy.spec.graph_options import GraphOptions, HeadsRange


class FoldedHeads(nn.Module):
    """Local descriptors (B,N_i,D_i) of each head to the stages of each, head by head."""

    def __init__(self, heads: Mapping[str, FoldedNetVLAD]) -> None:
        super().__init__()
        self.names = tuple(heads)
        self.heads = nn.ModuleList(heads.values())

    def by_name(self) -> dict[str, FoldedNetVLAD]:
        """Return the folded heads by name."""
        heads: list[FoldedNetVLAD] = list(self.heads)  # type: ignore[arg-type]
        return dict(zip(self.names, heads, strict=True))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Return the stages of the first head, then those of the second, and so on."""
        return tuple(stage for head, each in zip(self.heads, features, strict=True) for stage in head(each))


def fold_heads(module: Heads, options: GraphOptions) -> FoldedHeads:
    """Return the heads folded, in eval mode.

    Raises: FoldError as `fold`, with the name of the head.
    """
    folded = {}
    for name, head in module.by_name().items():
        try:
            folded[name] = fold(head, options)
        except FoldError as error:
            raise FoldError(f"head {name}: {error}") from error
    return FoldedHeads(folded).eval()


def audit_heads(folded: FoldedHeads) -> tuple[HeadsRange, tuple[str, ...]]:
    """Return the range of the features of each head, and what `audit` warns of, with the name of the head.

    Raises: FoldError as `audit`, with the name of the head.
    """
    ranges, warnings = {}, []
    for name, head in folded.by_name().items():
        try:
            ranges[name], findings = audit(head)
        except FoldError as error:
            raise FoldError(f"head {name}: {error}") from error
        warnings += [f"head {name}: {finding}" for finding in findings]
    return HeadsRange.of(ranges), tuple(warnings)
