"""Draw the README's picture: what FP16 costs a sharp head, plain and ours. `make figure`."""

import sys
import tempfile
from pathlib import Path

import torch

from netvlad_deploy.workflow.precision import PRECISION_PICTURE, precision
from netvlad_deploy.workflow.source import Source
from tests.heads import sharp_head


def main() -> None:
    """Write the picture to the path of the first argument: K=64, D=512, G=8, alpha 50, from a seed."""
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "alpha-50.pt"
        torch.save(sharp_head(64, 512, 8, 50, 0).state_dict(), checkpoint)
        precision(Source(checkpoint=checkpoint), Path(name) / "report")
        Path(sys.argv[1]).write_bytes((Path(name) / "report" / PRECISION_PICTURE).read_bytes())


if __name__ == "__main__":
    main()
