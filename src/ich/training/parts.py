"""Parts of a file of predictions or features that is not complete: where they lie, reading and removing them."""

import json
from hashlib import sha256
from pathlib import Path

import numpy as np

from ich.errors import IchError, one_line
from ich.files import discard


def parts_folder(path: Path, provenance: dict, batch_size: int) -> Path:
    """Return the folder of a file's parts, which no other model, slices, passes or batch size share.

    Args:
        path: of the file.
        provenance: what determines its content, as JSON takes it.
    """
    key = sha256(json.dumps([provenance, batch_size]).encode()).hexdigest()[:16]
    return path.with_suffix(".parts") / key


def part_path(folder: Path, first: int) -> Path:
    """Return the path of the part that begins with the sample of this number."""
    return folder / f"{first:09}.npy"


def read_part(path: Path) -> np.ndarray:
    """Map a part into memory.

    Raises:
        IchError: the file is damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise IchError(
            f"{path} cannot be read ({one_line(error)}); delete it, and its slices are predicted anew"
        ) from error


def discard_parts(path: Path) -> None:
    """Remove the parts of a file, those of other models and slices too.

    Args:
        path: of the file, or of its folder of parts (.parts).
    """
    folder = path.with_suffix(".parts")
    for parts in folder.glob("[0-9a-f]" * 16):
        discard(parts, r"[0-9]{9}\.npy")
    discard(folder, "")
