"""The verb `package`: an artifact to a model of an inference server."""

from pathlib import Path

from netvlad_deploy.artifact import load_artifact
from netvlad_deploy.serving.config import serving_of
from netvlad_deploy.serving.repository import TritonModel, add_model
from netvlad_deploy.support.files import stem_of


def package_triton(
    source: Path,
    repository: Path,
    *,
    name: str | None = None,
    backend: str | None = None,
    device: str | None = None,
    instances: int = 1,
    batch: int | None = None,
    expect_sha256: str | None = None,
    force: bool = False,
) -> TritonModel:
    """Add an artifact to a model repository of Triton, by default under the name of its file.

    >>> from netvlad_deploy.spec.graph_options import GraphOptions
    >>> from netvlad_deploy.workflow.export import export
    >>> from netvlad_deploy.workflow.source import Source
    >>> artifact = export(Source(num_clusters=2, feature_size=4), Path("head.onnx"), GraphOptions())
    >>> model = package_triton(artifact.path, Path("repository"))
    >>> str(model.folder), model.serving.backend
    ('repository/head/1', 'onnxruntime')

    Raises: as `load_artifact`, `serving_of` and `add_model`.
    """
    artifact = load_artifact(source, expect_sha256=expect_sha256, hold=True)
    serving = serving_of(
        artifact, name or stem_of(source), backend=backend, device=device, instances=instances, batch=batch
    )
    return add_model(artifact, repository, serving, force=force)
