"""A pipeline that answers requests: each with several images, many of them at once, one bad image not the others' loss.

Nothing here knows of the server: contents in, descriptors or errors out.
"""

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from netvlad_deploy.artifact import EngineArtifact, FileReference, check_file, load_artifact, sidecar_path
from netvlad_deploy.errors import InputError, NetVLADDeployError, RunError
from netvlad_deploy.retrieval.batches import largest_batch, run_batch
from netvlad_deploy.retrieval.decoding import check_decoder, decode_image
from netvlad_deploy.retrieval.loading import usual_decoders
from netvlad_deploy.runtime.execution_providers import CPU, CUDA
from netvlad_deploy.runtime.open_runner import ENGINES, open_runner
from netvlad_deploy.spec.images import IMAGES, MAX_PIXELS
from netvlad_deploy.spec.items import Content
from netvlad_deploy.support.arrays import Array, Float32

MOST_IMAGE_BYTES: Final = 64 << 20
"""Bytes of an encoded image: no photo has more, and the server takes no longer request over HTTP by default."""

NOT_FINITE: Final = "the descriptor of {name} is not finite"
Answer: TypeAlias = Float32 | NetVLADDeployError


class Served:
    """An opened artifact.

    Args:
        path: its file, beside its sidecar and its reference file.
        sidecar_sha256: the hash that its sidecar must have.
        gpu: run an ONNX file on the GPU; an engine runs there anyway.
        threads: CPU threads of one run.
        batch: images that are computed together, at most.

    Raises: ArtifactError if a file is damaged, swapped or missing; and as `open_runner`.
    """

    def __init__(self, path: Path, *, sidecar_sha256: str, gpu: bool, threads: int, batch: int) -> None:
        check_file(
            path.parent, FileReference(name=sidecar_path(path).name, sha256=sidecar_sha256), cure="package it again"
        )
        artifact = load_artifact(path, hold=True)
        check_file(path.parent, artifact.reference)
        if artifact.images is None:
            raise InputError(f"{path} takes local descriptors: package it again")
        if isinstance(artifact, EngineArtifact):
            self._runner = open_runner(artifact, backend=ENGINES)
        else:
            backend = CUDA if gpu else CPU
            self._runner = open_runner(artifact, backend=backend, threads=threads)
        check_decoder()
        self._images, self._batch = artifact.images, batch
        self._pool = ThreadPoolExecutor(max_workers=usual_decoders(), thread_name_prefix="decode")

    def close(self) -> None:
        """Let go of the runner and the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._runner.close()

    def answer(self, requests: Sequence[Sequence[Content]]) -> list[Answer]:
        """Return the descriptors (n,P) float32 of the n images of each request, or why it has none.

        Images of one size are computed together, whichever request they are of.
        """
        contents = [(content, _name(request, place)) for request in requests for place, content in enumerate(request)]
        load = self._pool.map if len(contents) > 1 else map
        loaded = list(enumerate(load(self._pixels, *zip(*contents, strict=True)))) if contents else []
        found: dict[int, Array | NetVLADDeployError] = dict(loaded)
        fitting = [(place, each) for place, each in loaded if isinstance(each, np.ndarray)]
        fitting.sort(key=lambda one: one[1].shape)  # stable: those of one size in the order of their arrival
        for _, group in itertools.groupby(fitting, lambda one: one[1].shape):
            places, images = zip(*group, strict=True)
            found.update(zip(places, self._computed(images), strict=True))
        first = [0, *itertools.accumulate(map(len, requests))]
        return [_joined([found[place] for place in range(*span)]) for span in itertools.pairwise(first)]

    def _pixels(self, content: Content, name: str) -> Array | NetVLADDeployError:
        """Return an image as the graph takes it, or why there is none."""
        if isinstance(content, bytes) and len(content) > MOST_IMAGE_BYTES:
            return InputError(
                f"{name} has {len(content)} bytes, expected at most {MOST_IMAGE_BYTES}: send a smaller one"
            )
        if isinstance(content, np.ndarray) and content.size > 3 * MAX_PIXELS:
            return InputError(f"{name} has shape {content.shape}, expected at most {MAX_PIXELS} pixels")
        try:
            return decode_image(content, self._images, name=name)
        except NetVLADDeployError as error:
            return InputError(f"{name}: {error}")
        except MemoryError:
            return InputError(f"{name} is too large for the memory that is left")

    def _computed(self, images: Sequence[Array]) -> list[Array | NetVLADDeployError]:
        """Return the descriptor (P,) of each of some images of one size."""
        most = largest_batch(self._runner, self._batch, images[0].shape[:2])
        found: list[Array | NetVLADDeployError] = []
        for start in range(0, len(images), most):
            found += self._run(images[start : start + most])
        return found

    def _run(self, images: Sequence[Array]) -> list[Array | NetVLADDeployError]:
        """Return the descriptors of a batch; where one of them fails it, each is computed alone."""
        try:
            return list(run_batch(self._runner, {IMAGES: np.stack(images)}, ["an image"] * len(images), NOT_FINITE))
        except (NetVLADDeployError, MemoryError) as error:
            if len(images) == 1:
                return [error if isinstance(error, NetVLADDeployError) else RunError("no memory is left for it")]
            return [self._run([image])[0] for image in images]


def _name(request: Sequence[Content], place: int) -> str:
    """Return what a refusal calls an image."""
    return "image" if len(request) == 1 else f"image {place}"


def _joined(found: Sequence[Array | NetVLADDeployError]) -> Answer:
    """Return the descriptors of one request, or its first error."""
    for each in found:
        if isinstance(each, NetVLADDeployError):
            return each
    return np.stack([each for each in found if not isinstance(each, NetVLADDeployError)]).astype(np.float32, copy=False)
