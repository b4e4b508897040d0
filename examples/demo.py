"""The main job on real photos, with no input: `make demo`.

EfficientNet-Lite0 and a vocabulary fitted here become one graph from image to descriptor, an engine, a parity report
and a latency report. Then photos that packages ship must be found again by mildly altered copies, and where the shared
data is present, the places of a corridor and of a street. `report.html` shows all of it, with the photos inside, and
`report.md` the same in Markdown.
"""

import argparse
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from examples.photos import packaged, write_photos
from netvlad_deploy.report.artifacts import artifact_section, repeat_section
from netvlad_deploy.report.deploy import Deployment, step_rows
from netvlad_deploy.report.evaluate import (
    EvaluationReport,
    agreement_table,
    recall_table,
)
from netvlad_deploy.report.graph_figure import graph_block
from netvlad_deploy.report.latency import latency_facts, latency_section
from netvlad_deploy.report.matches import Album, match_blocks
from netvlad_deploy.report.page import Block, Grid, Page, Paragraph, Section
from netvlad_deploy.report.parity import parity_facts, parity_sections
from netvlad_deploy.report.text import table
from netvlad_deploy.report.write import write_pages
from netvlad_deploy.runtime.open_runner import Candidate
from netvlad_deploy.sources.image_folders import find_images
from netvlad_deploy.spec.build_options import RTX, BuildOptions
from netvlad_deploy.spec.graph_options import GraphOptions
from netvlad_deploy.spec.images import ImageChanges, Resize
from netvlad_deploy.spec.verdict import Verdict
from netvlad_deploy.workflow.deploy import deploy
from netvlad_deploy.workflow.evaluate import MATCHES_PICTURE, evaluate
from netvlad_deploy.workflow.export import export
from netvlad_deploy.workflow.fit import FitOptions, fit
from netvlad_deploy.workflow.source import Source

DATA = Path(os.environ.get("NETVLAD_DATA", Path(__file__).parents[2] / "shared" / "data"))
BACKBONE, SIZE, CLUSTERS, SEED = "efficientnet-lite0", ImageChanges(resize=Resize(size=(240, 320))), 64, 0
PRECISIONS = ("fp32", "fp16")
STEPS_HEADER = ("verdict", "step", "reason")


@dataclass(frozen=True, kw_only=True)
class Walk:
    """Photos to find again: the right ones stand in a file, or are those at most `within` places away."""

    name: str
    about: str
    queries: Path
    database: Path
    ground_truth: Path | None = None
    within: int | None = None


def walks(folder: Path) -> Iterator[Walk]:
    """Yield what there is to retrieve on this machine; the packages' photos are written into a folder."""
    queries, database, truth = write_photos(folder, packaged())
    about = "Photos of packages, altered: a smoke test. No gain over mean pooling is claimed on them."
    yield Walk(name="photos", about=about, queries=queries, database=database, ground_truth=truth)
    if not DATA.is_dir():
        print(f"no {DATA}: the corridor and the street are left out", file=sys.stderr)
        return
    yield corridor()
    about = "29 photos along a street, each looked for among the others: right is the one before or after."
    yield Walk(name="street", about=about, queries=DATA / "street", database=DATA / "street", within=1)


def corridor() -> Walk:
    """Return the walk along a corridor."""
    here = DATA / "corridor"
    return Walk(
        name="corridor",
        about="Two walks along a corridor: right is what was taken at most about two steps away.",
        queries=here / "query",
        database=here / "reference",
        ground_truth=here / "ground_truth.json",
    )


def vocabulary(walk: Walk, folder: Path, *, seed: int = SEED) -> Path:
    """Fit a vocabulary on the database of a walk; return its checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{walk.name}.safetensors"
    options = FitOptions(backbone=BACKBONE, clusters=CLUSTERS, seed=seed, changes=SIZE)
    fit([walk.database], target, options, force=True)
    return target


def retrieve(walk: Walk, checkpoint: Path, folder: Path) -> EvaluationReport:
    """Export a vocabulary in both precisions, and evaluate them side by side."""
    source, candidates = Source(checkpoint=checkpoint), []
    for precision in PRECISIONS:
        target = folder / f"{walk.name}-{precision}.onnx"
        export(source, target, GraphOptions(precision=precision), force=True)
        candidates.append(Candidate(path=target))
    return evaluate(
        candidates,
        folder / walk.name,
        queries=walk.queries,
        database=walk.database,
        ground_truth=walk.ground_truth,
        within=walk.within,
        force=True,
    )


def page(deployment: Deployment, found: Mapping[str, tuple[Walk, EvaluationReport]]) -> Page:
    """Return the report: what each walk finds, with its photos, and what was deployed."""
    about = f"{BACKBONE} and a vocabulary of {CLUSTERS} clusters, fitted on the photos, as one graph."
    facts = [
        (f"{name}: recall@1, {one.precision}", f"{one.found.recall[1]:.1%}")
        for name, (_, report) in found.items()
        for one in report.candidates
    ]
    return Page(
        title="Image to descriptor",
        verdict=deployment.verdict,
        headline=about,
        facts=[*facts, *parity_facts(deployment.parity[0]), *latency_facts(deployment.latency)],
        sections=(
            Section("Steps", (Grid(STEPS_HEADER, step_rows(deployment.steps)),)),
            *(Section(name.capitalize(), walk_blocks(name, walk, report)) for name, (walk, report) in found.items()),
            *parity_sections(deployment.parity),
            latency_section(deployment.latency),
            artifact_section(deployment.onnx, graph_block(deployment.onnx)),
            repeat_section([deployment.onnx], command="make demo", versions=False),
        ),
    )


def walk_blocks(name: str, walk: Walk, report: EvaluationReport) -> list[Block]:
    """Return what one walk finds: its tables, and the photos of its matches."""
    paths = [{file.name: file.path for file in find_images([each])[0]} for each in (walk.queries, walk.database)]
    matches = match_blocks(report, Album(paths[0], paths[1], None), picture=f"{name}/{MATCHES_PICTURE}")
    return [Paragraph(walk.about), Grid(*recall_table(report)), Grid(*agreement_table(report)), *matches]


def main(folder: Path) -> int:
    """Do all of it, print the verdicts and what was found, and return the exit code."""
    todo = list(walks(folder / "images"))
    checkpoints = [vocabulary(walk, folder) for walk in todo]
    source, engine = Source(checkpoint=checkpoints[0]), BuildOptions(flavor=RTX)
    deployment = deploy(source, folder / "deployment", GraphOptions(), engine_options=engine, force=True)
    print("\n".join(table(STEPS_HEADER, step_rows(deployment.steps))))
    found = {}
    for walk, checkpoint in zip(todo, checkpoints, strict=True):
        found[walk.name] = walk, retrieve(walk, checkpoint, folder)
        report = found[walk.name][1]
        print("\n".join(["", walk.name, *table(*recall_table(report))]))
    done = page(deployment, found)
    write_pages([folder / "report.md", folder / "report.html"], done)
    print(f"\n{folder / 'report.html'}")
    every_photo = all(one.found.recall[1] == 1 for one in found["photos"][1].candidates)
    return 0 if every_photo and deployment.verdict is not Verdict.FAIL else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("netvlad_deploy").setLevel(logging.INFO)
    raise SystemExit(main(parser.parse_args().folder))
