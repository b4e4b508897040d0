"""The options of `bench` for what a user would pick in place of an artifact."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from netvlad_deploy.commands.flags import BackboneName, Dialect, Prefix

if TYPE_CHECKING:
    from netvlad_deploy.runtime.unfolded import Unfolded


@dataclass(frozen=True)
class PeerFlags:
    """What else is measured, and where the unfolded module is read from that some of it runs."""

    peers: Annotated[
        bool,
        typer.Option(
            "--peers",
            help="Measure all of openvino, torch, torch-compile, straight and limit that can run here, too.",
        ),
    ] = False
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What torch, torch-compile and straight are made of.  [default: the artifact's own, beside it]",
        ),
    ] = None
    prefix: Prefix = ""
    dialect: Dialect = None
    backbone: BackboneName = None

    @property
    def unfolded(self) -> "Unfolded":
        """Return how the unfolded module is read."""
        from netvlad_deploy.runtime.unfolded import Unfolded

        return Unfolded(checkpoint=self.checkpoint, prefix=self.prefix, dialect=self.dialect, backbone=self.backbone)
