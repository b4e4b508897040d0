"""One image from its bytes or its pixels, as a server and a node of a robot ask for it."""

import io

import numpy as np
import pytest
from PIL import Image

from netvlad_deploy.errors import InputError, UnfitError
from netvlad_deploy.retrieval.decoding import EMPTY, NO_IMAGE, NO_PIXELS, decode_image
from netvlad_deploy.spec.images import ImageInput, Resize

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "PNG")
    return stream.getvalue()


def test_pixels_are_resized_and_cut_as_a_file_of_them() -> None:
    rule = ImageInput(resize=Resize(size=(13, 17)), crop=(4, 6))
    expected = decode_image(png(), rule)
    assert expected.shape == (4, 6, 3)
    assert decode_image(PIXELS[:, ::-1][:, ::-1], rule).tobytes() == expected.tobytes()
    for wrong in (PIXELS[0], PIXELS[..., :1], PIXELS.astype(np.float32), PIXELS[:0]):
        with pytest.raises(UnfitError, match=NO_PIXELS):
            decode_image(wrong, rule)


def test_bytes_that_are_no_image_raise_the_reason_that_a_file_is_skipped_for() -> None:
    for content, reason in ((b"", EMPTY), (b"no image", NO_IMAGE)):
        with pytest.raises(InputError, match=reason) as caught:
            decode_image(content, ImageInput())
        assert isinstance(caught.value, UnfitError)
        assert caught.value.reason == reason
