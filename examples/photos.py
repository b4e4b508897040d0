"""Photos that scikit-image and scikit-learn ship, and the same photos mildly altered, as queries with a ground truth.

A smoke test of the whole way from an image to its match: an altered photo must find its original. It says nothing of
how well a descriptor recognises places.
"""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageEnhance

PHOTOS = {
    "skimage": (
        "data/astronaut.png data/brick.png data/camera.png data/chelsea.png data/clock_motion.png data/coffee.png "
        "data/coins.png data/grass.png data/gravel.png data/hubble_deep_field.jpg data/moon.png "
        "data/motorcycle_left.png data/page.png data/retina.jpg data/rocket.jpg"
    ),
    "sklearn": "datasets/images/china.jpg datasets/images/flower.jpg",
}
CROP, BRIGHTNESS, QUALITY, ANGLE = 0.06, 0.8, 60, 2.0
"""What a query differs by: an edge of 6 % cut off, a fifth darker, JPEG of quality 60, turned by 2 degrees."""


def packaged() -> list[Path]:
    """Return the photos, where the packages lie; nothing of the packages is imported."""
    found = []
    for package, names in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise SystemExit(
                f"{package} ships the photos, and is not installed: python -m pip install scikit-image scikit-learn"
            )
        found += [Path(spec.submodule_search_locations[0]) / name for name in names.split()]
    return found


def altered(image: Image.Image) -> Image.Image:
    """Return an image turned, cropped, darkened and compressed again."""
    width, height = image.size
    left, top = round(CROP * width), round(CROP * height)
    turned = image.rotate(ANGLE, resample=Image.Resampling.BILINEAR)
    darker = ImageEnhance.Brightness(turned.crop((left, top, width - left, height - top))).enhance(BRIGHTNESS)
    stream = BytesIO()
    darker.save(stream, "JPEG", quality=QUALITY)
    return Image.open(stream)


def write_photos(folder: Path, photos: Sequence[Path]) -> tuple[Path, Path, Path]:
    """Write originals, altered ones and the ground truth; return the folders of queries and originals, and the file."""
    queries, database, truth = folder / "queries", folder / "photos", folder / "ground_truth.json"
    for each in (queries, database):
        each.mkdir(parents=True, exist_ok=True)
    positives = {}
    for photo in photos:
        with Image.open(photo) as image:
            original = image.convert("RGB")
        original.save(database / f"{photo.stem}.png")
        altered(original).save(queries / f"{photo.stem}.png")
        positives[f"{photo.stem}.png"] = [f"{photo.stem}.png"]
    truth.write_text(json.dumps({"positives": positives}, indent=1, sort_keys=True) + "\n")
    return queries, database, truth
