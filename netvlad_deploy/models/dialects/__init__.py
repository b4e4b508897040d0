"""Checkpoints of other code than the reference's: which dialect one is in, and its head in the reference's form.

`docs/dialects.md` has the table. A dialect is a file here and an entry in DIALECTS.
"""

from collections.abc import Mapping

from torch import Tensor

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.dialects.base import Dialect, Head, names
from netvlad_deploy.models.dialects.collaborative_experts import COLLABORATIVE_EXPERTS
from netvlad_deploy.models.dialects.deep_visual_geo_localization import DEEP_VISUAL_GEO_LOCALIZATION
from netvlad_deploy.models.dialects.hloc import HLOC
from netvlad_deploy.models.dialects.lyakaap import LYAKAAP
from netvlad_deploy.models.dialects.mixture_of_embedding_experts import MIXTURE_OF_EMBEDDING_EXPERTS
from netvlad_deploy.models.dialects.openibl import OPENIBL
from netvlad_deploy.models.dialects.openplacerecognition import OPENPLACERECOGNITION
from netvlad_deploy.models.dialects.patch_netvlad import PATCH_NETVLAD
from netvlad_deploy.models.dialects.pointnetvlad import POINTNETVLAD
from netvlad_deploy.models.dialects.pytorch_netvlad import PYTORCH_NETVLAD
from netvlad_deploy.models.dialects.relja import RELJA
from netvlad_deploy.models.dialects.soccernet import SOCCERNET

__all__ = ["DIALECTS", "Dialect", "Head", "detect", "matching"]

DIALECTS: tuple[Dialect, ...] = (
    COLLABORATIVE_EXPERTS,
    MIXTURE_OF_EMBEDDING_EXPERTS,
    PYTORCH_NETVLAD,
    PATCH_NETVLAD,
    DEEP_VISUAL_GEO_LOCALIZATION,
    OPENIBL,
    LYAKAAP,
    SOCCERNET,
    HLOC,
    POINTNETVLAD,
    OPENPLACERECOGNITION,
    RELJA,
)


def matching(state: Mapping[str, Tensor]) -> list[Dialect]:
    """Return the dialects that these keys are, those aside that must be chosen."""
    return [dialect for dialect in DIALECTS if not dialect.explicit and dialect.matches(state)]


def detect(state: Mapping[str, Tensor], name: str | None = None) -> Dialect:
    """Return the dialect of a state, or the one of this name.

    Raises: UsageError for an unknown name; InputError if the keys are no dialect's, or several dialects'.
    """
    if name is not None:
        chosen = {dialect.name: dialect for dialect in DIALECTS}.get(name)
        if chosen is None:
            raise UsageError(f"dialect {name!r} is unknown: choose {', '.join(each.name for each in DIALECTS)}")
        return chosen
    found = matching(state)
    if len(found) > 1:
        raise InputError(f"could be {' or '.join(each.name for each in found)}: choose one with --dialect")
    if not found:
        raise InputError(_unknown(state))
    return found[0]


def _unknown(state: Mapping[str, Tensor]) -> str:
    """Say what is there, and what is missing of the dialect of which most is there."""

    def near(dialect: Dialect) -> tuple[int, int]:
        missing = len(dialect.missing(state))
        return len(dialect.needs) - missing, -missing

    nearest = max((dialect for dialect in DIALECTS if not dialect.explicit), key=near)
    if nearest is COLLABORATIVE_EXPERTS:
        return f"lacks clusters or clusters2, found {names(state)}"
    return f"lacks {', '.join(nearest.missing(state))} of {nearest.name}, the nearest dialect, found {names(state)}"
