"""The sections of a page on an artifact, and on how to make the page again."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from netvlad_deploy.artifact import AnyArtifact, EngineArtifact, FileReference
from netvlad_deploy.report.page import Block, Code, Grid, Paragraph, Section
from netvlad_deploy.report.text import artifact_lines, mebibytes
from netvlad_deploy.spec.build_options import BuildFigures
from netvlad_deploy.support.machine import installed_versions

MOST_KERNELS = 100
"""Most kernels that a page lists."""


def artifact_section(artifact: AnyArtifact, graph: Block | None = None) -> Section:
    """Return the section on a file: what it takes and gives, its graph, and of an engine memory and kernels."""
    blocks: list[Block] = [Code(artifact_lines(artifact))]
    if isinstance(artifact, EngineArtifact):
        blocks += _engine_blocks(artifact.figures)
    blocks += [graph] if graph else []
    return Section(f"File: {artifact.path.name}", blocks)


def _engine_blocks(figures: BuildFigures) -> list[Block]:
    memory = (
        ("activations, at the largest shape of a profile", mebibytes(figures.activation_bytes)),
        ("weights", mebibytes(figures.weight_bytes)),
        ("memory of the host, while it was built", mebibytes(figures.host_bytes)),
    )
    blocks: list[Block] = [Grid(("memory", "size"), memory)]
    if not figures.kernels:
        return [*blocks, Paragraph("The builder did not list its kernels.")]
    kinds = Counter((each.kind, ", ".join(each.inputs), ", ".join(each.outputs)) for each in figures.kernels)
    blocks.append(
        Grid(("kernels of a kind", "takes", "gives", "number"), [(*kind, str(n)) for kind, n in kinds.most_common()])
    )
    listed = [each.name for each in figures.kernels[:MOST_KERNELS]]
    more = [f"and {len(figures.kernels) - MOST_KERNELS} more"] if len(figures.kernels) > MOST_KERNELS else []
    return [*blocks, Paragraph(f"Its {len(figures.kernels)} kernels, in order:"), Code([*listed, *more])]


def repeat_section(artifacts: Sequence[AnyArtifact], *, command: str, versions: bool = True) -> Section:
    """Return the section with all that makes the same page again: the command, the files by their hashes, versions.

    `command` is the line as it was typed; empty if the page was not made by a command.
    """
    files, packages = [], [each for each in installed_versions().items() if versions]
    for artifact in artifacts:
        files.append((str(artifact.path), artifact.sha256))
        related = [each for each in (artifact.parent, artifact.reference) if each is not None]
        files += [(_beside(artifact.path.parent, each), each.sha256) for each in related]
        packages += [(f"{name}, which made {artifact.path.name}", text) for name, text in artifact.versions.items()]
    tables = (("file", "SHA-256"), files), (("package", "version"), packages)
    grids = [Grid(header, list(dict.fromkeys(rows))) for header, rows in tables if rows]
    return Section("Repeat it", (*([Code([command])] if command else []), *grids))


def _beside(folder: Path, reference: FileReference) -> str:
    """Return the path of a file beside an artifact; of a checkpoint, which may be anywhere, the name."""
    return str(folder / reference.name) if (folder / reference.name).exists() else reference.name
