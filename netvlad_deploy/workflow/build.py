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
    """Build an engine from an ONNX artifact, or from its file, of which a hash may be expected."""
    from netvlad_deploy.tensorrt.engine import build_engine

    artifact = load_artifact(source, expect_sha256=expect_sha256) if isinstance(source, Path) else source
    return build_engine(artifact, target, options, timing_cache=timing_cache, force=force)
