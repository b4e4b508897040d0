"""Pixels are resized as torch and OpenCV resize them."""

import numpy as np
import pytest

from netvlad_deploy.retrieval.resample import resample, to_bytes
from netvlad_deploy.spec.images import ALIASED, ANTIALIASED, AREA, NEAREST, Resize
from netvlad_deploy.support.arrays import Array

SIZES = [
    ((120, 160), (75, 100)), ((110, 83), (103, 77)), ((37, 91), (13, 77)), ((37, 91), (80, 200)), ((30, 41), (30, 41)),
    ((302, 403), (48, 64)), ((100, 5), (37, 2)), ((5, 7), (16, 16)), ((3, 200), (1, 1)), ((1, 1), (4, 3)),
]  # fmt: skip


def photo(height: int, width: int) -> Array:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.export
@pytest.mark.parametrize(("size", "target"), SIZES)
@pytest.mark.parametrize("kernel", [ALIASED, ANTIALIASED, NEAREST])
def test_torch_gives_the_same(kernel: str, size: tuple[int, int], target: tuple[int, int]) -> None:
    """By `interpolate` on values from 0 to 1, as torchvision resizes a tensor: to a millionth."""
    import torch
    from torch.nn.functional import interpolate

    image = photo(*size)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    if kernel == NEAREST:
        expected = interpolate(x, size=target, mode="nearest")
    else:
        expected = interpolate(x, size=target, mode="bilinear", align_corners=False, antialias=kernel == ANTIALIASED)
    got = resample(image, target, kernel)
    assert got.dtype == np.float32
    assert np.abs(got / 255 - expected[0].permute(1, 2, 0).numpy()).max() < 1e-6


@pytest.mark.export
@pytest.mark.parametrize(("size", "cover"), [((60, 81), (48, 64)), ((133, 200), (64, 48)), ((31, 50), (48, 64))])
@pytest.mark.parametrize("kernel", [ALIASED, NEAREST])
def test_torch_gives_the_same_by_a_factor(kernel: str, size: tuple[int, int], cover: tuple[int, int]) -> None:
    """As the benchmark's central crop asks for it: pixels stand by the factor, not by the lengths it is rounded to."""
    import torch
    from torch.nn.functional import interpolate

    image, rule = photo(*size), Resize(cover=cover)
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    mode = {NEAREST: "nearest", ALIASED: "bilinear"}[kernel]
    expected = interpolate(x, scale_factor=max(cover[0] / size[0], cover[1] / size[1]), mode=mode)[0].permute(1, 2, 0)
    got = resample(image, rule.target(*size), kernel, rule.factor(*size))
    assert np.abs(got - expected.numpy()).max() < 255e-6
    assert np.abs(resample(image, rule.target(*size), kernel) - expected.numpy()).max() > 2


def test_the_filters_differ_where_an_image_shrinks() -> None:
    image = photo(120, 160)
    results = [resample(image, (48, 64), kernel) for kernel in (ALIASED, ANTIALIASED, AREA, NEAREST)]
    for index, one in enumerate(results):
        for other in results[:index]:
            assert np.abs(one - other).mean() > 5


def pattern(height: int, width: int) -> Array:
    """Return an image that can be written again in other languages."""
    rows, columns, channels = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((rows * 73 + columns * 151 + channels * 59 + rows * columns * 7) % 256).astype(np.uint8)


OPENCV: dict[tuple[int, int], list[list[float]]] = {
    (4, 5): [
        [105.2727, 126.4445, 129.5152, 163.6162, 109.7980],
        [131.8384, 135.2323, 141.2121, 131.6768, 101.4546],
        [158.4041, 144.0202, 127.0505, 135.9394, 147.4141],
        [133.2525, 121.7778, 128.4041, 93.6566, 164.9293],
    ],
    (10, 8): [
        [23.4848, 135.0808, 96.6970, 146.2323, 172.4949, 175.4849, 67.2828, 158.1919],
        [98.7980, 187.8485, 116.5758, 102.1919, 136.9394, 189.7879, 152.1313, 86.0303],
        [156.0101, 98.3939, 167.4849, 115.0404, 119.4849, 149.7879, 74.0707, 140.5758],
        [153.7475, 145.9899, 109.7879, 169.2626, 130.4748, 148.5758, 112.3737, 104.6162],
        [76.4950, 144.4546, 152.9394, 132.9798, 128.5354, 124.0909, 80.8586, 122.9596],
        [141.4647, 93.7879, 157.3030, 176.8586, 103.3232, 107.3636, 181.2222, 138.7172],
        [221.9495, 156.8990, 122.8788, 119.8889, 145.3434, 152.6970, 160.0505, 115.6869],
        [116.2525, 101.0606, 189.3030, 132.7374, 114.9596, 89.4242, 177.6667, 162.4748],
        [126.9192, 89.1818, 77.3030, 122.3131, 190.5960, 142.5152, 130.6364, 92.8990],
        [207.4041, 167.8081, 128.2121, 98.9596, 72.2929, 32.6970, 174.1111, 186.2323],
    ],
    (11, 4): [
        [72.2222, 123.3333, 174.4444, 111.7778],
        [149.8889, 102.7778, 169.4445, 122.3333],
        [113.7778, 139.1111, 136.0000, 104.4444],
        [163.0000, 147.0000, 131.0000, 115.0000],
        [126.8889, 126.4444, 154.4444, 97.1111],
        [90.7778, 162.7778, 92.5556, 107.6667],
        [140.0000, 170.6667, 116.0000, 203.5555],
        [217.6667, 93.2222, 167.8889, 100.3333],
        [67.7778, 186.4444, 77.5556, 196.2222],
        [117.0000, 80.5556, 186.3333, 93.0000],
        [194.6667, 116.8889, 39.1111, 188.8889],
    ],
    (5, 3): [
        [108.8182, 140.7576, 133.9091],
        [135.9697, 136.1515, 120.8182],
        [124.3333, 131.5455, 131.0000],
        [151.4849, 134.6970, 141.1818],
        [139.8485, 114.5758, 128.0909],
    ],
}  # fmt: skip


@pytest.mark.parametrize(("size", "expected"), OPENCV.items())
def test_area_is_that_of_opencv(size: tuple[int, int], expected: list[list[float]]) -> None:
    """Made by OpenCV 5.0: `cv2.resize(pattern.astype(float32), (width, height), interpolation=INTER_AREA)`, red."""
    got = resample(pattern(11, 9), size, AREA)[..., 0]
    assert np.abs(got - np.array(expected)).max() < 1e-3


def test_area_takes_fractions_of_pixels() -> None:
    """Three pixels become two: each is one and a half."""
    image = np.array([[0, 90, 240]], np.uint8)[..., None]
    assert np.allclose(resample(image, (1, 2), AREA)[0, :, 0], [(0 + 45) / 1.5, (45 + 240) / 1.5])


def test_area_enlarges_by_plain_bilinear_sampling() -> None:
    image = photo(10, 12)
    for target in ((20, 24), (5, 24), (20, 6)):
        assert np.array_equal(resample(image, target, AREA), resample(image, target, ALIASED))


def test_bytes_are_rounded_to_the_nearest() -> None:
    values = np.array([-0.4, 0.5, 1.5, 254.6, 255.2], np.float32)
    assert to_bytes(values).tolist() == [0, 0, 2, 255, 255]
