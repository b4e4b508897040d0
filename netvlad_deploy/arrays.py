"""Names for NumPy arrays, and the one way to read them from files: without pickles, and with the file closed."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import InputError

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def read_arrays(path: Path) -> Array | Arrays:
    """Return the array of a `.npy` file, or the named arrays of an `.npz` file.

    Raises: InputError if the file is missing, truncated, or holds anything but plain arrays.
    """
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is unreadable or truncated ({error})") from error
