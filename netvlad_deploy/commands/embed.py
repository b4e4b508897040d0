"""The verb `embed`."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netvlad_deploy.commands import flags
from netvlad_deploy.commands.choices import one_of
from netvlad_deploy.commands.output import Shown
from netvlad_deploy.errors import UsageError
from netvlad_deploy.support.limits import check_limit, whole_number

if TYPE_CHECKING:
    from netvlad_deploy.workflow.embed import EmbedResult, Part

StoredType = Annotated[str, one_of(("float32", "float16"), "--dtype", "Type of the values that are written.")]
TargetOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="TARGET", help=".npz, .npy, .h5 or .parquet; without a suffix a folder of shards."
    ),
]
InputsArgument = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="INPUT", help="Images, or local descriptors for a head alone: folders, files, patterns in quotes."
    ),
]
RuntimeCacheOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="TensorRT-RTX: keep compiled kernels in this file, for a faster start next time."
    ),
]


@dataclass(frozen=True)
class InputFlags:
    """Inputs that stand in a list, or in files that hold many."""

    listing: Annotated[
        str | None, typer.Option("--list", metavar="FILE", help="File with one path on each line; - is standard input.")
    ] = None
    column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Parquet: the column of images, if several could hold them.")
    ] = None
    topic: Annotated[
        str | None, typer.Option(metavar="NAME", help="ROS bags: the topic of images, if there are several.")
    ] = None


@dataclass(frozen=True)
class ShardFlags:
    """How the work is divided."""

    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Compute part I of N, from 0 to N-1; join them with --merge.")
    ] = None
    merge: Annotated[bool, typer.Option("--merge", help="Join what all parts of --shard have computed.")] = False
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Compute on a Ray cluster: local (starts one on this machine), auto (the one it is in) or HOST:PORT.",
        ),
    ] = None
    shard_size: Annotated[
        int | None,
        typer.Option(help="Inputs that are computed and saved as one unit.  [default: 1024, or 64 MiB of descriptors]"),
    ] = None

    @property
    def part(self) -> "Part | None":
        """Return the part that is asked for, None for all.

        Raises: UsageError if there is no such part.
        """
        if self.shard is not None and self.merge:
            raise UsageError("--shard makes a part, --merge joins all of them: leave one of them out")
        if self.ray is not None and (self.shard is not None or self.merge):
            raise UsageError("--ray computes all shards and joins them: leave --shard and --merge out")
        return None if self.shard is None else parse_part(self.shard)


def embed(
    artifact: Annotated[Path, typer.Argument(metavar="ARTIFACT", help="An ONNX file, an engine or a checkpoint.")],
    output: TargetOption,
    given: InputFlags,
    shards: ShardFlags,
    inputs: InputsArgument = None,
    backend: flags.Backend = None,
    batch: Annotated[
        int | None,
        typer.Option(help="Inputs computed at once, at most.  [default: 8 images, or 32 of local descriptors]"),
    ] = None,
    decoders: Annotated[
        int | None, typer.Option(help="Threads that read and decode images.  [default: as many as keep up]")
    ] = None,
    head: Annotated[
        str | None, typer.Option(metavar="NAME", help="The head to compute, of a graph with several.")
    ] = None,
    runtime_cache: RuntimeCacheOption = None,
    dtype: StoredType = "float32",
    expect_sha256: flags.ExpectSha256 = None,
    force: flags.Force = False,
) -> Shown:
    """Turn images or local descriptors into descriptors.

    If it was stopped, the same command goes on where it was.

    Exit 1 if an input was skipped. A part of --shard exits with 0 then, so that no scheduler starts it again.
    """
    from netvlad_deploy.runtime.open_runner import Candidate
    from netvlad_deploy.workflow.embed import EmbedOptions
    from netvlad_deploy.workflow.embed import embed as run

    part = shards.part
    options = EmbedOptions(**asdict(given), batch=batch, head=head, dtype=dtype, shard_size=shards.shard_size)  # type: ignore[arg-type]
    result = run(
        Candidate(path=artifact, backend=backend, expect_sha256=expect_sha256),
        inputs or [],
        output,
        options,
        part=part,
        merging=shards.merge,
        ray=shards.ray,
        decoders=decoders,
        runtime_cache=runtime_cache,
        force=force,
    )
    return Shown(result, lambda done: [embed_line(done)], 1 if result.reasons and result.part is None else 0)


def parse_part(text: str) -> "Part":
    """Read `I/N`, part I of N, counted from 0.

    Raises: UsageError if it has another form, or there is no such part.
    """
    from netvlad_deploy.workflow.embed import Part

    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if found is None:
        raise UsageError(f"shard {text[:40]!r} is not I/N, part I of N counted from 0: for example 0/4")
    index, count = map(whole_number, found.groups())
    check_limit("parts", count)
    if index >= count:
        raise UsageError(f"shard {text[:40]} is counted from 0: the last of {count} parts is {count - 1}/{count}")
    return Part(index=index, count=count)


def embed_line(result: "EmbedResult") -> str:
    """Return what was written as a line."""
    from netvlad_deploy.spec.items import reason_words

    line = f"{result.output}  {result.descriptors} x {result.descriptor_size}"
    if result.part is not None:
        line += f", part {result.part}: {result.shards} shards"
    if result.complete:
        line += ", complete already"
    elif result.kept:
        line += f", {result.kept} of {result.shards} shards were there already"
    if result.reasons:
        line += f", {sum(result.reasons.values())} skipped: {reason_words(result.reasons)}"
    return line
