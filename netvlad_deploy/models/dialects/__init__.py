"""The dialects of checkpoints: find a layer in a checkpoint, its dialect, and the conventions that its keys leave open.

`docs/dialects.md` has the table. A dialect is a file here and an entry in DIALECTS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from netvlad_deploy.errors import InputError, UsageError
from netvlad_deploy.models.dialects import (
    anyloc,
    collaborative_experts,
    convolution,
    crn,
    hfnet,
    keras,
    loupe,
    netvlad_tf_open,
    relja,
    salad,
    speaker,
    supervlad,
)
from netvlad_deploy.models.dialects.base import Dialect, Place, conventions, in_words
from netvlad_deploy.models.head import Head
from netvlad_deploy.models.tensor_names import names

DIALECTS: tuple[Dialect, ...] = (
    collaborative_experts.COLLABORATIVE_EXPERTS,
    collaborative_experts.MIXTURE_OF_EMBEDDING_EXPERTS,
    convolution.PYTORCH_NETVLAD,
    convolution.PATCH_NETVLAD,
    convolution.DEEP_VISUAL_GEO_LOCALIZATION,
    convolution.OPENIBL,
    convolution.LYAKAAP,
    convolution.SOCCERNET,
    loupe.SOCCERNET_TEMPORALLY_AWARE,
    convolution.HLOC,
    loupe.LOUPE,
    loupe.POINTNETVLAD,
    loupe.OVERLAPTRANSFORMER,
    loupe.CVTNET,
    loupe.CVTNET_VIEW,
    loupe.OVERLAPNETVLAD,
    convolution.OPENPLACERECOGNITION,
    relja.RELJA,
    netvlad_tf_open.NETVLAD_TF_OPEN,
    keras.NETVLAD_KERAS,
    keras.TENSORFLOW2_NETVLAD,
    keras.CEREBRO,
    keras.LOUPE_KERAS,
    supervlad.SUPERVLAD,
    supervlad.SUPERVLAD_ONE_CLUSTER,
    anyloc.ANYLOC_SOFT,
)

HEIRS: tuple[Dialect, ...] = (salad.SALAD_FILE, anyloc.ANYLOC, hfnet.HFNET_FILE, speaker.SPEAKER, crn.CRN_FILE)
"""The dialects of aggregators other than NetVLAD."""


def places(state: Mapping[str, Tensor]) -> list[Place]:
    """Return the places of layers in a state, a layer once for each dialect that its keys fit."""
    return [place for dialect in (*DIALECTS, *HEIRS) for place in dialect.places(state) if place.fits(state)]


def find_head_in(state: Mapping[str, Tensor], *, prefix: str = "", name: str | None = None) -> tuple[Place, Head]:
    """Return the place and the head of the only layer in a state, or of the one with this prefix or this dialect.

    A prefix, given without its last dot, ends before the layer's own names or before the dialect's root.

    Raises: UsageError for an unknown dialect; InputError if there is no such layer, there are several, or its keys fit
        several dialects with different conventions.
    """
    found = places(state) if name is None else list(find_dialect(name).places(state))
    here = [place for place in found if not prefix or f"{prefix}." in (place.before, place.start)]
    if not here or (name is None and all(place.dialect.explicit for place in here)):
        raise InputError(_nothing(state, found, prefix, name))
    layers = {place.layer: place.start.rstrip(".") for place in here}
    if len(layers) > 1:
        starts = ", ".join(start or "one without a prefix" for start in sorted(layers.values()))
        known = sorted({place.dialect.name for place in here if place.is_named(state)})
        dialects = f", or with --dialect ({', '.join(known)})" if len(known) > 1 else ""
        raise InputError(
            f"holds {len(layers)} NetVLADs: {starts}: choose one with --prefix{dialects}, or export them together with "
            "--all-heads"
        )
    return _read(state, here, assumes=name is None)


def find_heads_in(state: Mapping[str, Tensor], *, name: str | None = None) -> dict[str, tuple[Place, Head]]:
    """Return the place and the head of every layer in a state, or of every one of this dialect, by its whole prefix.

    A prefix is given without its last dot; it is empty for a layer without one.

    Raises: UsageError for an unknown dialect; InputError if there is no layer, or its keys fit several dialects with
        different conventions.
    """
    found = places(state) if name is None else list(find_dialect(name).places(state))
    layers = {place.layer: place.start.rstrip(".") for place in found if name is not None or not place.dialect.explicit}
    if not layers:
        raise InputError(_nothing(state, found, "", name))
    return {
        start: _read(state, [place for place in found if place.layer == layer], assumes=name is None)
        for layer, start in layers.items()
    }


def _read(state: Mapping[str, Tensor], here: Sequence[Place], *, assumes: bool) -> tuple[Place, Head]:
    """Return the place and the head of one layer; with `assumes` the head says which conventions were assumed.

    Raises: as `_told_apart`.
    """
    place, head = _told_apart(state, here)
    if assumes:
        head = replace(head, assumed=_assumed(state, here, place, head) or head.assumed)
    return place, head


def find_dialect(name: str) -> Dialect:
    """Return the dialect of this name.

    Raises: UsageError if there is none.
    """
    known = {dialect.name: dialect for dialect in (*DIALECTS, *HEIRS)}
    chosen = known.get(name)
    if chosen is None:
        raise UsageError(f"dialect {name!r} is unknown: choose {', '.join(known)}")
    return chosen


def _told_apart(state: Mapping[str, Tensor], fits: Sequence[Place]) -> tuple[Place, Head]:
    """Return the place and head of a layer in the dialect that the file shows, of the dialects that fit it.

    Raises: InputError if the file shows no dialect, and their conventions differ.
    """
    usual = [place for place in fits if not place.dialect.explicit] or fits
    shown = [place for place in usual if place.is_named(state)] or usual
    (place, head), *others = _heads(state, shown)
    if differing := [other for _, other in others if other.spec != head.spec]:
        rivals = " or ".join(each.dialect for each in (head, *differing))
        said = "; ".join(_difference(head, other) for other in differing)
        raise InputError(f"could be {rivals}, and nothing beside {place.layer} says which ({said}): choose --dialect")
    return place, head


def _heads(state: Mapping[str, Tensor], fits: Sequence[Place]) -> list[tuple[Place, Head]]:
    """Return the places whose dialects take every tensor of the layer, each with its head.

    Raises: the InputError of the first dialect if no dialect does.
    """
    heads, errors = [], []
    for place in fits:
        try:
            heads.append((place, place.head(state)))
        except InputError as error:
            errors.append(error)
    if not heads:
        raise errors[0]
    return heads


def _assumed(state: Mapping[str, Tensor], fits: Sequence[Place], place: Place, head: Head) -> str:
    """Return the assumed dialect and the conventions in doubt, in words; empty if the keys show the dialect."""
    if place.is_named(state):
        return ""
    rare = [each for each in fits if each.dialect.explicit and each is not place]
    try:
        others = [other for _, other in _heads(state, rare) if other.spec != head.spec] if rare else []
    except InputError:
        others = []
    if others:
        said = "; ".join(_difference(head, other) for other in others)
        return f"{head.dialect}, not {others[0].dialect}, which saves the same keys ({said})"
    if not any(place.dialect.roots):
        return ""
    return f"{head.dialect}, by {place.layer} alone ({in_words(head.spec)})"


def _difference(head: Head, other: Head) -> str:
    """Return the conventions in which two readings of a layer differ, in words."""
    mine, theirs = conventions(head.spec), conventions(other.spec)
    return ", ".join(
        f"{subject} {mine.get(subject, 'none')} in {head.dialect}, {theirs.get(subject, 'none')} in {other.dialect}"
        for subject in {**mine, **theirs}
        if mine.get(subject) != theirs.get(subject)
    )


def _nothing(state: Mapping[str, Tensor], found: Sequence[Place], prefix: str, name: str | None) -> str:
    """Return the reason why no head was found, and the names that were found instead."""
    chosen_alone = name is None and all(place.dialect.explicit for place in found)
    rare = sorted({place.dialect.name for place in found}) if chosen_alone else []
    if prefix and found and not rare:
        starts = sorted({place.start.rstrip(".") or "no prefix" for place in found})
        return f"holds no NetVLAD behind --prefix {prefix}: there is one behind {', '.join(starts)}"
    if name is not None:
        return f"lacks {', '.join(find_dialect(name).missing(state))} of {name}, found {names(state)}"

    def nearness(dialect: Dialect) -> tuple[int, int]:
        missing = len(dialect.missing(state))
        return len(dialect.needs) - missing, -missing

    nearest = max((dialect for dialect in DIALECTS if not dialect.explicit), key=nearness)
    cure = f": choose --dialect if it is of {' or '.join(rare)}" if rare else ""
    if nearest is collaborative_experts.COLLABORATIVE_EXPERTS:
        return f"lacks clusters or clusters2, found {names(state)}{cure}"
    lacking = ", ".join(nearest.missing(state))
    return f"lacks {lacking} of {nearest.name}, the nearest dialect, found {names(state)}{cure}"
