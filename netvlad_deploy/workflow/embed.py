"""The verb `embed`: descriptors of feature files or images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from netvlad_deploy.errors import UsageError
from netvlad_deploy.retrieval import embed_features as features
from netvlad_deploy.retrieval.embed_images import BATCH, embed_images
from netvlad_deploy.runner import Runner
from netvlad_deploy.runtime.one_head import OneHead
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.sources.image_folders import IMAGE_SUFFIXES, find_images
from netvlad_deploy.spec.images import ImageInput
from netvlad_deploy.spec.items import Skipped
from netvlad_deploy.spec.layer import FEATURES, MASK, HeadsSpec
from netvlad_deploy.support.arrays import write_npz
from netvlad_deploy.support.files import check_apart, check_suffix, stage_files
from netvlad_deploy.support.streams import stdout_to_stderr

FEATURE_BATCH = 32  # items of local descriptors at once


@dataclass(frozen=True, kw_only=True)
class EmbedResult:
    """The file that `embed` wrote, its descriptors, and the files that gave none."""

    output: Path
    descriptors: int
    descriptor_size: int
    duration_ms: float
    skipped: tuple[Skipped, ...] = ()


def embed(
    candidate: Candidate,
    sources: Sequence[Path],
    target: Path,
    *,
    batch: int | None = None,
    head: str | None = None,
    runtime_cache: Path | None = None,
    force: bool = False,
) -> EmbedResult:
    """Write the descriptors of one feature file, or of folders and images for a pipeline.

    The target is complete or not there. For images it is an `.npz` file with `names` (N,), each the image's path from
    the folder that was given, and `descriptors` (N,P) float32. `batch` items run at once, by default 32 of features or
    8 images. `head` is the name of one of several heads.

    >>> from netvlad_deploy.spec.graph_options import GraphOptions
    >>> from netvlad_deploy.workflow.export import export
    >>> from netvlad_deploy.workflow.source import Source
    >>> artifact = export(Source(num_clusters=2, feature_size=4), Path("m.onnx"), GraphOptions())
    >>> np.save("x.npy", np.ones((3, 5, 4), np.float32))
    >>> result = embed(Candidate(path=artifact.path), [Path("x.npy")], Path("y.npy"))
    >>> result.descriptors, np.load("y.npy").shape  # (B, D*K)
    (3, (3, 8))

    Raises: UsageError if artifact, sources and target do not belong together; InputError if no image is left.
    """
    if runtime_cache is not None:
        check_apart(runtime_cache, (*sources, target), "runtime cache")
    images = None if candidate.artifact is None else candidate.artifact.images
    if images is None:
        return _embed_features(candidate, sources, target, batch or FEATURE_BATCH, head, runtime_cache, force)
    if head is not None:
        raise UsageError(f"{candidate.name} takes images and has one head: leave --head out")
    return _embed_images(candidate, images, sources, target, batch or BATCH, runtime_cache, force)


def _embed_images(
    candidate: Candidate,
    images: ImageInput,
    sources: Sequence[Path],
    target: Path,
    batch: int,
    runtime_cache: Path | None,
    force: bool,
) -> EmbedResult:
    """Write the names and the descriptors of the images in folders."""
    if source := next((source for source in sources if source.suffix in features.FEATURE_SUFFIXES), None):
        raise UsageError(f"{candidate.name} takes images, {source} holds features: export with --input features")
    check_suffix(target, ".npz")
    with stage_files(force=force) as staging:
        staging.check(target)
        files, skipped = find_images(sources)
        with stdout_to_stderr(), candidate.open(runtime_cache=runtime_cache) as runner:
            started = time.perf_counter()
            done = embed_images(runner, images, files, batch=batch, skipped=skipped)
            duration_ms = (time.perf_counter() - started) * 1e3
        with staging.open(target) as stream:
            write_npz(stream, {"names": np.array(done.names), "descriptors": done.descriptors})
    return EmbedResult(
        output=target,
        descriptors=len(done.names),
        descriptor_size=done.descriptors.shape[1],
        duration_ms=duration_ms,
        skipped=done.skipped,
    )


def _one_head(runner: Runner, head: str | None) -> Runner:
    """Return the runner of one head where there are several, or the runner as it is.

    Raises: UsageError if there are several and none is named, or none has this name.
    """
    if head is not None:
        return OneHead(runner, head)
    if isinstance(runner.spec, HeadsSpec):
        raise UsageError(f"{runner.name} has the heads {', '.join(runner.spec.heads)}: choose one with --head")
    return runner


def _embed_features(
    candidate: Candidate,
    sources: Sequence[Path],
    target: Path,
    batch: int,
    head: str | None,
    runtime_cache: Path | None,
    force: bool,
) -> EmbedResult:
    """Write the descriptors of a feature file: array to array, sequences to sequences."""
    if len(sources) != 1 or sources[0].is_dir() or sources[0].suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(
            f"{candidate.name} takes one file of local descriptors, got {' '.join(map(str, sources))}: "
            "for images export with --input images"
        )
    features.check_target(sources[0], target)
    with stage_files(force=force) as staging:
        staging.check(target)
        loaded = features.load_features(sources[0])
        with stdout_to_stderr(), candidate.open(runtime_cache=runtime_cache) as opened:
            runner = _one_head(opened, head)
            if others := set(runner.inputs) - {FEATURES, MASK}:
                raise UsageError(f"{candidate.name} takes {', '.join(others)} too, a feature file has none")
            started = time.perf_counter()
            with staging.open(target) as stream:
                if isinstance(loaded, dict):
                    write_npz(stream, features.embed_sequences(runner, loaded, batch=batch))
                else:
                    np.save(stream, features.embed_array(runner, loaded, batch=batch), allow_pickle=False)
            duration_ms = (time.perf_counter() - started) * 1e3
            size = runner.spec.descriptor_size
    return EmbedResult(output=target, descriptors=len(loaded), descriptor_size=size, duration_ms=duration_ms)
