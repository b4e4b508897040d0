"""Several NetVLADs that one checkpoint holds, as one module: each takes its own local descriptors.

SoccerNet's NetVLAD++ has one for the first half of a window and one for the second; a mixture of experts has one for
each kind of feature. What their code does with the descriptors, such as joining them, is not a part of this.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from netvlad_deploy.errors import InputError
from netvlad_deploy.models.netvlad import NetVLAD
from netvlad_deploy.spec.layer import HeadsSpec

BARE = "head"
"""Name of a layer that has no prefix in its file."""

UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")
"""A character that a name in a graph, a profile or a file may not have."""


def safe_names(prefixes: Iterable[str]) -> dict[str, str]:
    """Return the name of each head in a graph by its prefix in the file, with `_` for unusual characters.

    Raises: InputError if two heads would get one name.

    >>> safe_names(["text_pooling", "pooling.audio/vggish", ""])
    {'text_pooling': 'text_pooling', 'pooling.audio/vggish': 'pooling.audio_vggish', '': 'head'}
    """
    names = {prefix: UNSAFE.sub("_", prefix) or BARE for prefix in prefixes}
    if len(set(names.values())) < len(names):
        raise InputError(
            f"holds heads whose names become one in a graph: {', '.join(sorted(names))}: export them one by one with "
            "--prefix"
        )
    return names


class Heads(nn.Module):
    """Several heads in eval mode, by name: local descriptors (B,N_i,D_i) of each to the descriptors of each.

    Args:
        heads: the modules by name; inputs and outputs are in the order of the names.

    >>> import torch
    >>> heads = Heads({"before": NetVLAD(4, 8), "after": NetVLAD(2, 6)}).eval()
    >>> [tuple(each.shape) for each in heads(torch.ones(1, 7, 6), torch.ones(1, 5, 8))]  # after, before
    [(1, 12), (1, 32)]
    """

    def __init__(self, heads: Mapping[str, NetVLAD]) -> None:
        super().__init__()
        heads = dict(sorted(heads.items()))
        self.heads = nn.ModuleList(heads.values())
        self.spec = HeadsSpec(heads={name: head.spec for name, head in heads.items()})

    def by_name(self) -> dict[str, NetVLAD]:
        """Return the heads by name."""
        heads: list[NetVLAD] = list(self.heads)  # type: ignore[arg-type]
        return dict(zip(self.spec.heads, heads, strict=True))

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        """Return the descriptors (B,P_i) of the local descriptors (B,N_i,D_i) of each head, in order."""
        return tuple(head(each) for head, each in zip(self.heads, features, strict=True))
