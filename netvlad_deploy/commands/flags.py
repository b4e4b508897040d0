"""The options that several verbs share, and groups of them."""

import inspect
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import typer

from netvlad_deploy.commands.choices import one_of
from netvlad_deploy.errors import UsageError
from netvlad_deploy.spec.backends import BACKENDS, STRICT, TIMED
from netvlad_deploy.spec.build_options import FLAVORS, BuildOptions
from netvlad_deploy.spec.graph_options import INPUT_KINDS, GraphOptions
from netvlad_deploy.spec.images import (
    CHANNELS,
    USUAL_IMAGES,
    AnyProfile,
    ImageChanges,
    ImageProfile,
    Resize,
    parse_profile,
    parse_size,
)
from netvlad_deploy.spec.profiles import AxisRange, Profile

Backend = Annotated[str | None, one_of(BACKENDS, "--backend", "[default: the file's own]")]
Backends = Annotated[
    list[str] | None,
    one_of(BACKENDS, "--backend", "Repeat for several.  [default: strict for FP16 ONNX, else the file's own]"),
]
TimedBackends = Annotated[
    list[str] | None,
    one_of(TIMED, "--backend", "Repeat for several.  [default: the file's own]", refused_later=[STRICT]),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="TARGET", help="File to write.")]
Folder = Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Folder to write.")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite what exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Report = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="Also write a page, .html or .md; repeat for both.")
]
Prefix = Annotated[str, typer.Option(help="What stands before the layer's keys in the checkpoint.")]
Dialect = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The project whose keys the checkpoint has.  [default: found by the keys]"),
]
BackboneName = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="NAME",
        help="Image backbone: a name, hf:FOLDER, timm:NAME or package.module:callable.  [default: the checkpoint's]",
    ),
]
ExpectSha256 = Annotated[
    str | None, typer.Option("--expect-sha256", metavar="HASH", help="Refuse the file if its SHA-256 is another.")
]
AllowNotRun = Annotated[
    bool, typer.Option("--allow-not-run", help="Exit 0 although something could not run on this machine.")
]
Duration = Annotated[float, typer.Option(help="Seconds to measure each candidate.")]


Checkpoint = Annotated[
    Path | None, typer.Argument(metavar="CHECKPOINT", help="Trained weights; without it, untrained from the seed.")
]


@dataclass(frozen=True)
class ImageFlags:
    """The preparation of images, where it differs from the checkpoint's or the backbone's own code."""

    resize: Annotated[
        str | None,
        typer.Option(
            metavar="RULE[,FILTER]",
            help="HxW, N (the longer side at most), shorter:N, cover:HxW or none.  [default: the backbone's]",
        ),
    ] = None
    crop: Annotated[
        str | None, typer.Option(metavar="HxW", help="Cut out the middle after the resize.  [default: the backbone's]")
    ] = None
    orient: Annotated[
        bool | None,
        typer.Option("--orient/--no-orient", help="Turn photos upright by EXIF, or not.  [default: the backbone's]"),
    ] = None
    depth: Annotated[
        int | None, typer.Option(metavar="BITS", help="Bits in use of grey images of 16 or 32 bits.  [default: 16]")
    ] = None

    @property
    def changes(self) -> ImageChanges:
        """Return the changes as one object.

        Raises: UsageError if a text has not the form that its help shows.
        """
        return ImageChanges(
            resize=None if self.resize is None else Resize.parse(self.resize),
            crop=None if self.crop is None else parse_size(self.crop, "crop"),
            orient=self.orient,
            depth=self.depth,
        )


@dataclass(frozen=True)
class SourceFlags:
    """The weights: which of those in a checkpoint, or the sizes of untrained ones."""

    clusters: Annotated[int | None, typer.Option(help="Number of clusters K.  [default: the checkpoint's, or 64]")] = (
        None
    )
    feature_size: Annotated[
        int | None, typer.Option(help="Width D of a local descriptor.  [default: the checkpoint's, or 512]")
    ] = None
    ghost_clusters: Annotated[
        int | None, typer.Option(help="Number of ghost clusters G.  [default: the checkpoint's, or 0]")
    ] = None
    batch_norm: Annotated[
        bool | None, typer.Option("--batch-norm/--no-batch-norm", help="BatchNorm on assignments.  [default: yes]")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of untrained weights.  [default: 0]")] = None
    prefix: Prefix = ""
    dialect: Dialect = None
    head_only: Annotated[
        bool,
        typer.Option("--head-only", help="Leave out the projection after the head, such as whitening."),
    ] = False
    takes: Annotated[
        str | None,
        one_of(INPUT_KINDS, "--input", "What the graph takes.  [default: images if there is a backbone]"),
    ] = None
    backbone: BackboneName = None


def _parameter(option: Field[Any]) -> inspect.Parameter:
    """Return the parameter of a graph or build option, as Typer reads it: a list where the option may be repeated."""
    table, several = option.metadata, option.default == ()
    if choices := table.get("choices"):
        info = one_of(choices, table["flag"], table["help"])
    else:
        info = typer.Option(table["flag"], help=table["help"], metavar=table.get("metavar"))
    kind = list[str] | None if several else option.type
    default = None if several else option.default
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, info]
    )


def given(context: typer.Context, *groups: Any) -> list[str]:
    """Return the options of some groups that stand on the command line, whatever their values are."""
    names = {name for group in groups for name in inspect.signature(group).parameters}
    return [
        max(each.opts, key=len)
        for each in context.command.params
        if each.name in names and getattr(context.get_parameter_source(each.name), "name", "") == "COMMANDLINE"
    ]


class GraphFlags(dict[str, Any]):
    """Inputs, outputs and precision of the exported graph, by field of `GraphOptions`."""

    __signature__ = inspect.Signature([_parameter(each) for each in fields(GraphOptions)])


class Tuning(dict[str, Any]):
    """The build options that were given, by field of `BuildOptions`, all but flavor and profiles."""

    __signature__ = inspect.Signature([_parameter(each) for each in fields(BuildOptions) if "flag" in each.metadata])


@dataclass(frozen=True)
class EngineFlags:
    """The flavor of TensorRT that builds the engine, and the shapes that the engine is for."""

    flavor: Annotated[
        str, one_of(FLAVORS, "--flavor", "TensorRT of the engine; tensorrt-rtx builds without a GPU.")
    ] = FLAVORS[0]
    batch: Annotated[
        str | None, typer.Option(metavar="MIN:OPT:MAX", help=f"Batch sizes.  [default: {Profile().batch}]")
    ] = None
    num_features: Annotated[
        str | None,
        typer.Option(metavar="MIN:OPT:MAX", help=f"Features per image.  [default: {Profile().num_features}]"),
    ] = None
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW[,HxW,HxW]", help="Height and width of images.  [default: as they are resized, or the usual]"
        ),
    ] = None
    profile: Annotated[
        list[str] | None,
        typer.Option(
            metavar="BxN,BxN,BxN", help="Smallest, usual and largest shape, BxHxW of images; repeat for several."
        ),
    ] = None

    @property
    def profiles(self) -> tuple[AnyProfile, ...]:
        """Return the optimization profiles; none stands for the usual one of a head or pipeline.

        Raises: UsageError if they are given in two ways.
        """
        if self.profile:
            if self.batch or self.num_features or self.image_size:
                raise UsageError("--profile says all axes: leave --batch, --num-features and --image-size out")
            return tuple(parse_profile(text) for text in self.profile)
        if self.image_size:
            if self.num_features:
                raise UsageError("--image-size is for images, --num-features for features: leave one of them out")
            return (_image_profile(AxisRange.parse(self.batch) if self.batch else USUAL_IMAGES.batch, self.image_size),)
        if not self.batch and not self.num_features:
            return ()
        batch, num_features = self.batch or str(Profile().batch), self.num_features or str(Profile().num_features)
        return (Profile(batch=AxisRange.parse(batch), num_features=AxisRange.parse(num_features)),)

    def options(self, tuning: Mapping[str, Any] = MappingProxyType({})) -> BuildOptions:
        """Return all options of the builder as one object.

        Raises: UsageError if two of them contradict each other.
        """
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in tuning.items()
        }
        return BuildOptions(flavor=self.flavor, profiles=self.profiles, **given)


def _image_profile(batch: AxisRange, sizes: str) -> ImageProfile:
    """Return the profile of a batch and of `HxW` or `HxW,HxW,HxW`."""
    listed = sizes.split(",")
    bounds = (batch.min, batch.opt, batch.max)
    return ImageProfile.parse(",".join(f"{bound}x{size}" for bound, size in zip(bounds, listed * 3, strict=False)))


def parse_triple(text: str, name: str) -> tuple[float, float, float]:
    """Read a value for each of R, G and B, separated by commas, from 0 to 255.

    Raises: UsageError if the text has another form or a value is out of range.

    >>> parse_triple("123.675,116.28,103.53", "mean")
    (123.675, 116.28, 103.53)
    """
    form = re.fullmatch(r"\d{1,3}(?:\.\d{0,12})?(?:,\d{1,3}(?:\.\d{0,12})?){2}", text)
    values = [float(part) for part in text.split(",")] if form else []
    if len(values) != CHANNELS or max(values) > 255:
        raise UsageError(f"{name} {text[:40]!r} is not R,G,B from 0 to 255, for example 123.675,116.28,103.53")
    red, green, blue = values
    return red, green, blue
