"""How images lie in the tensor that a graph takes: their type, their channels and the order of the axes.

NumPy is imported where it is used: the help of the command line reads the names of the layouts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from netvlad_deploy.support.arrays import Array

UINT8: Final = "uint8"

LUMA: Final = (19595, 38470, 7471)
"""Shares of R, G and B in a grey value, in units of 2^-16. Source: Pillow, Convert.c, ITU-R 601-2."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A layout of images; values are from 0 to 255 in each.

    Args:
        dtype: of the tensor.
        channels: 3 for RGB, 1 for grey.
        channels_first: (B,C,H,W) in place of (B,H,W,C).
    """

    dtype: str = "float32"
    channels: int = 3
    channels_first: bool = False

    @property
    def axes(self) -> tuple[int, int, int]:
        """Return the numbers of the axes of batch, height and width.

        >>> Layout(channels_first=True).axes
        (0, 2, 3)
        """
        return (0, 2, 3) if self.channels_first else (0, 1, 2)

    @property
    def words(self) -> str:
        """Return in words what an image is."""
        return f"{'RGB' if self.channels > 1 else 'grey'} from 0 to 255"

    def shape(self, lengths: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of images of these lengths (B,H,W).

        >>> Layout(channels=1).shape((1, 480, 640))
        (1, 480, 640, 1)
        """
        batch, height, width = lengths
        return (batch, self.channels, height, width) if self.channels_first else (batch, height, width, self.channels)

    def laid_out(self, images: "Array") -> "Array":
        """Return images (B,H,W,3) uint8 RGB in this layout."""
        import numpy as np

        if self.channels == 1:
            images = to_grey(images)
        if self.channels_first:
            images = images.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(images, dtype=self.dtype)


def to_grey(images: "Array") -> "Array":
    """Return the grey values (...,1) uint8 of images (...,3) uint8; three equal values give that value.

    >>> import numpy as np
    >>> to_grey(np.array([[255, 0, 0], [7, 7, 7]], np.uint8)).tolist()
    [[76], [7]]
    """
    import numpy as np

    sums = images.astype(np.uint32) @ np.array(LUMA, np.uint32)
    return ((sums + 0x8000) >> 16).astype(np.uint8)[..., None]


LAYOUTS: Final = {
    UINT8: Layout(dtype="uint8"),
    "rgb": Layout(),
    "grey": Layout(channels=1),
    "rgb-nchw": Layout(channels_first=True),
    "grey-nchw": Layout(channels=1, channels_first=True),
}
"""By name: uint8 RGB (B,H,W,3), and float32 RGB or grey, the channels last or first."""
