"""What a verb is given: refused before the work if it cannot be right."""

import shlex
from pathlib import Path

from netvlad_deploy.errors import UsageError


def exported(path: Path, verb: str) -> Path:
    """Return the path of an artifact.

    Raises: UsageError if it is a checkpoint, with the command that makes an artifact of it.
    """
    from netvlad_deploy.formats import is_checkpoint

    if path.is_file() and is_checkpoint(path):
        raise UsageError(
            f"{path} is a checkpoint, and {verb} takes what export makes of it: "
            f"{shlex.join(['netvlad-deploy', 'export', str(path)])}"
        )
    return path
