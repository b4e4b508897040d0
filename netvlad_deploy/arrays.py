"""Names for NumPy arrays, and the one way to read them from files: without pickles, and with the file closed."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from netvlad_deploy.errors import InputError

DAMAGE = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
"""What NumPy and the standard library raise for damaged files."""

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
            arrays = {name: loaded[name] for name in loaded.files}
    except DAMAGE as error:
        raise InputError(f"{path} is unreadable or truncated ({' '.join(str(error).split())})") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"{path} holds {name}, which is no array: keep arrays alone in it")
    return arrays


def npz_content(arrays: Mapping[str, Array]) -> bytes:
    """Return the bytes of an `.npz` file, see `write_npz`."""
    stream = io.BytesIO()
    write_npz(stream, arrays)
    return stream.getvalue()


def write_npz(stream: IO[bytes], arrays: Mapping[str, Array]) -> None:
    """Write an `.npz` file: under any names, and the same bytes for the same arrays in the same order."""
    with zipfile.ZipFile(stream, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
