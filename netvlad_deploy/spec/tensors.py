"""The tensors of a pipeline's graph by the names that another program asks for, and how images lie in them.

Everything in this package has images as uint8 RGB (B,H,W,3) under `images`, and takes a descriptor from `descriptor`. A
graph may want it otherwise: a runner changes one into the other.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.images import IMAGES, LOCAL_DESCRIPTORS, ImageInput
from netvlad_deploy.spec.layer import DESCRIPTOR
from netvlad_deploy.spec.layouts import LAYOUTS, UINT8, Layout

if TYPE_CHECKING:
    from netvlad_deploy.support.arrays import Array


class LaidOut(dict[str, Any]):
    """Feeds that were checked, and are as their graph takes them."""


@dataclass(frozen=True, kw_only=True)
class ImageTensors:
    """The input and the output of a pipeline whose images or names are not this package's own."""

    input: str
    output: str
    layout: Layout

    def feeds(self, images: "Array") -> LaidOut:
        """Return images (B,H,W,3) uint8 as the feeds of the graph."""
        return LaidOut({self.input: self.layout.laid_out(images)})

    def named(self, name: str) -> str:
        """Return this package's name of an output of the graph."""
        return DESCRIPTOR if name == self.output else name


def tensors_of(images: ImageInput | None, inputs: Sequence[str], outputs: Sequence[str]) -> ImageTensors | None:
    """Return the tensors of a pipeline whose images or names are not this package's own, None for any other graph."""
    if images is None:
        return None
    plain = images.layout == UINT8 and inputs[0] == IMAGES and outputs[0] in (DESCRIPTOR, LOCAL_DESCRIPTORS)
    return None if plain else ImageTensors(input=inputs[0], output=outputs[0], layout=LAYOUTS[images.layout])


def shape_words(shapes: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, str]:
    """Return the shapes of all inputs as `features:1x300x512,mask:1x300`, by `min`, `opt` and `max`.

    Args:
        shapes: the smallest, usual and largest shape of each input, by its name.
    """
    return {
        bound: ",".join(f"{name}:{'x'.join(map(str, shapes[name][index]))}" for name in shapes)
        for index, bound in enumerate(("min", "opt", "max"))
    }


def parse_names(text: str) -> tuple[str, str]:
    """Read `INPUT,OUTPUT`.

    Raises: UsageError if the text has another form.

    >>> parse_names("image:0,descriptor:0")
    ('image:0', 'descriptor:0')
    """
    found = re.fullmatch(r"([\w:./-]{1,100}),([\w:./-]{1,100})", text, re.ASCII)
    if found is None or found[1] == found[2]:
        raise UsageError(
            f"tensor names {text[:80]!r} are not INPUT,OUTPUT: two different names of letters, digits and _:./- as in "
            "image:0,descriptor:0"
        )
    return found[1], found[2]
