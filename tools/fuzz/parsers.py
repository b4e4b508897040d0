"""The parsers that are fuzzed: how a sound file of each is made, and what reads it.

Another parser is another entry of PARSERS.
"""

import argparse
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, load_artifact
from netvlad_deploy.latency.baseline import FORM, load_baseline
from netvlad_deploy.latency.sweep import open_sweep
from netvlad_deploy.oracle.reference_file import load_reference
from netvlad_deploy.retrieval.ground_truth import load_positives
from netvlad_deploy.retrieval.loading import load_images
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.support.arrays import Array, npz_content, read_arrays
from netvlad_deploy.support.sidecar import SIDECAR
from tools.fuzz.bulk_parsers import BULK
from tools.fuzz.other_parsers import OTHERS
from tools.fuzz.parser import Parser, sealed, written


def _contents() -> list[dict[str, Any]]:
    """Return files as trainers save them: weights alone, or beside numbers, an optimizer and their own objects."""
    import torch

    from tests.modules import make_module

    state = make_module(3, 4, 1).state_dict()
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3, 2))])
    beside = {"recalls": {1: np.float64(0.5)}, "best": np.arange(3.0), "args": argparse.Namespace(lr=0.1, k=(1, 2))}
    views = {"a": torch.ones(6)[2:5], "b": torch.ones(2, 3).mT, "c": torch.ones(1).expand(3), "d": torch.tensor(3)}
    return [state, {"epoch": 1, "state_dict": state, "optimizer": optimizer.state_dict(), **beside}, {**state, **views}]


def _torch(*, row: bool) -> list[bytes]:
    import torch

    def write(content: object, path: Path) -> None:
        torch.save(content, path, _use_new_zipfile_serialization=not row)

    return [written(".pt", partial(write, content)) for content in _contents()]


def _safetensors() -> list[bytes]:
    import torch
    from safetensors.torch import save

    from tests.modules import make_module

    return [save(make_module(3, 4, 1).state_dict(), {"format": "pt"}), save({"a": torch.ones(2, 3).half()})]


def _mat() -> list[bytes]:
    """Return networks as MatConvNet saves them, in uncompressed and in compressed variables."""
    import scipy.io

    from tests.models.dialects.samples import SAMPLES
    from tests.models.dialects.test_relja import cells, layers_of

    files = []
    for sample, compress in (("relja", False), ("relja, vladv2", True)):
        meta = {"normalization": {"averageImage": np.ones((1, 1, 3))}}
        net = {"net": {"layers": cells(*layers_of(SAMPLES[sample].state)), "meta": meta}, "x": np.ones(3)}
        files.append(written(".mat", partial(scipy.io.savemat, mdict=net, do_compression=compress)))
    return files


BUNDLE_DATA = np.ones(1024, np.float32).tobytes()
BUNDLE_VARIABLES = {f"scope/layer_{number}/kernel": np.ones((3, number + 1), np.float32) for number in range(9)}


def _bundle() -> list[bytes]:
    from tests.models.bundles import write_bundle

    with tempfile.TemporaryDirectory() as folder:
        return [write_bundle(Path(folder), "m", BUNDLE_VARIABLES).read_bytes()]


def _bundle_block() -> list[bytes]:
    """Return the entries of an index without what surrounds them."""
    from tests.models.bundles import block, entry, header, masked

    value = entry(1, (3, 4), size=48, checksum=masked(BUNDLE_DATA[:48]))
    return [block([(b"", header(1)), *((f"a/{number:02}".encode(), value) for number in range(20))])]


def _index(path: Path) -> object:
    """Read an index beside a file of data."""
    from netvlad_deploy.models.weights_file import read_tensors

    path.with_suffix(".data-00000-of-00001").write_bytes(BUNDLE_DATA)
    return read_tensors(path)


def _index_of_block(path: Path) -> object:
    """Read an index whose one block this is, with right checksums around it."""
    from tests.models.bundles import table

    path.write_bytes(table([path.read_bytes()]))
    return _index(path)


def _keras() -> list[bytes]:
    from tests.models.keras_files import write_keras

    state = {"net_vlad_1.cluster_centers": np.ones((1, 1, 1, 3, 2)), "net_vlad_1.kernel": np.ones((1, 1, 3, 2))}
    return [written(".h5", partial(write_keras, state=state, whole=whole)) for whole in (False, True)]


def _npy() -> list[bytes]:
    arrays: list[Array] = [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.ones((2, 3))),
        np.array(["a", "bc"]),
    ]
    return [written(".npy", partial(np.save, arr=array)) for array in arrays]


def _npz() -> list[bytes]:
    packed = io.BytesIO()
    np.savez_compressed(packed, allow_pickle=False, a=np.ones((3, 4), np.float32), b=np.arange(3))
    return [npz_content({"c": np.ones((2, 3)), "d": np.array("text")}), packed.getvalue()]


def _reference() -> list[bytes]:
    from tests.modules import make_module

    state = {name: tensor.numpy() for name, tensor in make_module(3, 4, 1).state_dict().items()}
    return [npz_content({**state, "batch_norm.eps": np.float64(1e-5)})]


def _weights(path: Path) -> object:
    from netvlad_deploy.models.checkpoints import load_checkpoint

    return load_checkpoint(path)


def _sidecars() -> list[bytes]:
    from tests.test_artifact import engine_artifact, onnx_artifact, write

    def write_artifact(make: Callable[[Path], OnnxArtifact | EngineArtifact], sidecar: Path) -> None:
        write(make(sidecar.with_suffix("")))

    return [written(".onnx.json", partial(write_artifact, make)) for make in (onnx_artifact, engine_artifact)]


def _baselines() -> list[bytes]:
    from tests.latency.test_baseline import BASELINE

    return [BASELINE.text()]


def _baseline(path: Path) -> object:
    path.write_bytes(sealed(path.read_bytes(), FORM))
    return load_baseline(path)


def _sweeps() -> list[bytes]:
    from tests.latency.test_sweep import OTHER, POINT

    def write(path: Path) -> None:
        with open_sweep(path) as file:
            file.append(POINT)
            file.append(OTHER)

    return [written(".jsonl", write)]


def _points(path: Path) -> object:
    with open_sweep(path) as file:
        return file.points


def _artifact(sidecar: Path) -> object:
    path = sidecar.with_suffix("")
    path.write_bytes(b"content")
    sidecar.write_bytes(sealed(sidecar.read_bytes(), SIDECAR))
    return load_artifact(path)


def _pictures() -> list[bytes]:
    """Return images of each format, and a photo on its side, a palette, grey of 16 bits and a compressed TIFF."""
    from PIL import Image

    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(8, 6, 3)
    photo, deep = Image.fromarray(pixels), Image.fromarray(np.arange(48, dtype=np.uint16).reshape(8, 6) * 1300)
    exif = Image.Exif()
    exif[0x0112] = 6  # the orientation
    exif[0x010F] = "Maker"
    kinds: list[tuple[Any, str, dict[str, Any]]] = [
        *((photo, kind, {}) for kind in ("PNG", "TIFF", "BMP", "WEBP", "PPM", "GIF")),
        (photo, "JPEG", {"exif": exif}),
        (photo.convert("P"), "PNG", {"transparency": 0}),
        (deep, "PNG", {}),
        (deep, "TIFF", {"compression": "tiff_lzw"}),
    ]
    return [written(".png", partial(image.save, format=kind, **options)) for image, kind, options in kinds]


def _image(path: Path) -> object:
    files, _ = find_images([path])
    with load_images(files, ImageInput()) as loaded:
        return list(loaded)


def _ground_truth(path: Path) -> object:
    return load_positives(path, ["q0.jpg", "q1.jpg"], ["a.jpg", "b/c.jpg"])


def _graphs() -> list[bytes]:
    import torch

    from tests.export.foreign.graphs import Looped, export_by_torch

    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8), Looped(2, 4))
    return [written(".onnx", lambda path: export_by_torch(network, path, torch.zeros(1, 3, 24, 32)))]


def _foreign(path: Path) -> object:
    from netvlad_deploy.export.foreign.read import read_foreign

    return read_foreign(path)


PARSERS: dict[str, Parser] = {
    "torch": Parser(suffix=".pt", seeds=lambda: _torch(row=False), read=_weights),
    "legacy torch": Parser(suffix=".pth", seeds=lambda: _torch(row=True), read=_weights),
    "safetensors": Parser(suffix=".safetensors", seeds=_safetensors, read=_weights),
    "weights npz": Parser(suffix=".npz", seeds=_reference, read=_weights),
    "mat": Parser(suffix=".mat", seeds=_mat, read=_weights),
    "bundle": Parser(suffix=".index", seeds=_bundle, read=_index),
    "bundle block": Parser(suffix=".index", seeds=_bundle_block, read=_index_of_block),
    "keras": Parser(suffix=".h5", seeds=_keras, read=_weights),
    "npy": Parser(suffix=".npy", seeds=_npy, read=read_arrays),
    "npz": Parser(suffix=".npz", seeds=_npz, read=read_arrays),
    "reference": Parser(suffix=".reference.npz", seeds=_reference, read=load_reference),
    "sidecar": Parser(suffix=".onnx.json", seeds=_sidecars, read=_artifact),
    "baseline": Parser(suffix=".json", seeds=_baselines, read=_baseline),
    "sweep": Parser(suffix=".jsonl", seeds=_sweeps, read=_points),
    "image": Parser(suffix=".png", seeds=_pictures, read=_image, largest_mib=2048),
    "ground truth": Parser(
        suffix=".json",
        seeds=lambda: [b'{"positives": {"q0.jpg": ["a.jpg"], "q1.jpg": ["a.jpg", "b/c.jpg"]}}', b'{"q0.jpg": []}'],
        read=_ground_truth,
    ),
    "onnx": Parser(suffix=".onnx", seeds=_graphs, read=_foreign),
    **BULK,
    **OTHERS,
}
