"""The command by which NVIDIA's own tool builds the same engine, for comparisons and for reports to NVIDIA."""

import shlex
from pathlib import Path

from netvlad_deploy.artifact import EngineArtifact
from netvlad_deploy.spec.build_options import RTX
from netvlad_deploy.spec.images import AnyProfile
from netvlad_deploy.tensorrt.api import MODULES


def trtexec_line(artifact: EngineArtifact, timing_cache: Path | None = None) -> str:
    """Return the line of `trtexec`, or of TensorRT-RTX's own tool, that builds an engine with the same options.

    The line of TensorRT-RTX's tool has files, shapes and compute capabilities only: no public page lists the others.

    Source: TensorRT documentation, trtexec; TensorRT-RTX documentation, CPU-only AOT and dynamic shapes.
    """
    options = artifact.options
    parent = artifact.path.parent / artifact.parent.name if artifact.parent else Path("MODEL.onnx")
    tool = MODULES[RTX] if options.flavor == RTX else "trtexec"  # RTX's tool has the name of its package
    words = [tool, f"--onnx={parent}", f"--saveEngine={artifact.path}", "--skipInference"]
    if options.flavor != RTX:
        words += _tuning(artifact, timing_cache)
    for index, profile in enumerate(options.profiles):
        words += [f"--profile={index}"] if len(options.profiles) > 1 else []
        words += _shapes(artifact, profile)
    if options.compute_capabilities:
        words.append("--computeCapabilities=" + ",".join(name[2:] for name in options.compute_capabilities))
    return shlex.join(words)


def _tuning(artifact: EngineArtifact, timing_cache: Path | None) -> list[str]:
    """Return the words for how the builder works: TF32 is the one option that `trtexec` must be told to leave out."""
    options = artifact.options
    major = int(artifact.versions[options.flavor].partition(".")[0])
    words = ["--stronglyTyped"] if major < 11 else []  # the only kind of network from 11 on
    words += ["--profilingVerbosity=detailed"] if options.tf32 else ["--noTF32", "--profilingVerbosity=detailed"]
    words += [word.format(value) for word, value in options.chosen("trtexec")]
    return words + ([f"--timingCacheFile={timing_cache}"] if timing_cache else [])


def _shapes(artifact: EngineArtifact, profile: AnyProfile) -> list[str]:
    """Return the words for the least, usual and largest shape of every input."""
    shapes = artifact.input_shapes(profile)
    return [
        f"--{bound}Shapes=" + ",".join(f"{name}:{'x'.join(map(str, shapes[name][index]))}" for name in shapes)
        for index, bound in enumerate(("min", "opt", "max"))
    ]
