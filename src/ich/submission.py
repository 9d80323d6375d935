"""From predictions to the CSV that the competition accepts."""

import json
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import pandas as pd

from ich.errors import IchError, name_some
from ich.files import replacing
from ich.labels import LABELS, read_ids, to_long


def make_submission(predictions: pd.DataFrame, sample: str | Path | BinaryIO) -> pd.DataFrame:
    """The rows of a submission, in the order of the sample submission.

    Args:
        predictions: six probabilities, indexed by SOPInstanceUID, in any order.
        sample: the competition's sample submission, as `ich.labels.read_ids` takes it; its Label column is not read.

    Returns:
        Columns ID and Label (float), one row for each of the sample's.

    Raises:
        IchError: an id of the sample has no prediction, a prediction no place in the sample, or a value is not in
            [0, 1]; nothing is filled in.
    """
    rows, images = read_ids(sample)
    without = images.difference(predictions.index)
    if len(without):
        raise IchError(
            f"the sample submission asks for {name_some(without)}, of which there are no predictions; nothing is filled"
            " in: the slice table says which slices could not be read, or this is the sample of another test set"
        )
    foreign = predictions.index.difference(images)
    if len(foreign):
        raise IchError(
            f"there are predictions of {name_some(foreign)}, for which the sample submission does not ask; give the one"
            " that belongs to this test set"
        )
    values = predictions[list(LABELS)].to_numpy()
    wrong = ~((values >= 0) & (values <= 1)).all(axis=1)  # NaN is wrong too
    if wrong.any():
        raise IchError(f"predictions of {name_some(predictions.index[wrong])} are not in [0, 1]; predict again")
    long = to_long(predictions.loc[images])
    if not long["ID"].equals(rows):
        long = long.set_index("ID").loc[rows].reset_index()
    return long


def write_submission(submission: pd.DataFrame, path: Path, provenance: dict) -> None:
    """Write the CSV, and beside it a .json with its provenance, number of rows and SHA-256.

    Values have nine significant digits, which tell every float32 from its neighbours.

    Args:
        submission: as `make_submission` gives it.
        path: of the CSV; its name with .json is the manifest's.
        provenance: what the manifest says beside: run, score, commit, ...

    Raises:
        IchError: a file cannot be written.
    """
    with replacing(path) as temporary:
        submission.to_csv(temporary, index=False, lineterminator="\n", float_format="%.9g")
        digest = sha256(temporary.read_bytes()).hexdigest()
    manifest = {"file": path.name, "rows": len(submission), "sha256": digest, **provenance}
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n")
