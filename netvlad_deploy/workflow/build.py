"""The verb `build`: an ONNX artifact to a TensorRT engine."""

from pathlib import Path

from netvlad_deploy.artifact import EngineArtifact, OnnxArtifact, load_artifact
from netvlad_deploy.spec.build_options import BuildOptions


def build(
    source: OnnxArtifact | Path,
    target: Path,
    options: BuildOptions,
    *,
    timing_cache: Path | None = None,
    expect_sha256: str | None = None,
    force: bool = False,
) -> EngineArtifact:
    """Build an engine from an ONNX artifact, or from its file, of which a hash may be expected.

    Options that do not fit the graph are refused before TensorRT is asked for:

    >>> from netvlad_deploy.spec.graph_options import GraphOptions
    >>> from netvlad_deploy.workflow.export import export
    >>> from netvlad_deploy.workflow.source import Source
    >>> half = export(Source(num_clusters=2, feature_size=4), Path("m.onnx"), GraphOptions(precision="fp16"))
    >>> build(half, Path("m.engine"), BuildOptions(flavor="tensorrt-rtx", tf32=True))
    Traceback (most recent call last):
        ...
    netvlad_deploy.errors.UsageError: TF32 is for FP32 graphs, m.onnx is fp16: leave --tf32 out

    Raises: as `build_engine`.
    """
    from netvlad_deploy.tensorrt.engine import build_engine

    artifact = load_artifact(source, expect_sha256=expect_sha256) if isinstance(source, Path) else source
    return build_engine(artifact, target, options, timing_cache=timing_cache, force=force)
