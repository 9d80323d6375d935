"""Write predictions as the CSV that the competition accepts."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pandas as pd

from ich import folders
from ich.competition.labels import INDEX_NAME, LABELS, to_long
from ich.errors import IchError, name_some
from ich.files import check_own, replacing, sha256_of, write_json

POLICIES = ("refuse", "series_mean", "prevalence")
"""Policies for the prediction of a test slice that could not be read."""

NEEDED = ("SOPInstanceUID", "SeriesInstanceUID", "split", "status")
"""The columns of the slice table that `fill_missing` needs."""


def fill_missing(
    predictions: pd.DataFrame,
    images: pd.Index,
    policies: Sequence[str],
    table: pd.DataFrame,
    prevalence: dict[str, float] | None = None,
) -> tuple[pd.DataFrame, dict[str, list[str]]]:
    """Fill in predictions for unreadable slices of the sample submission, by the policies that the user named.

    Nothing else is filled in: a slice that is missing from the table, or was readable, has no prediction because a
    stage was not run.

    Args:
        predictions: six probabilities, indexed by SOPInstanceUID.
        images: the slices that the sample submission asks for.
        policies: of `POLICIES`, tried in this order for each slice: `series_mean`, each label's mean over the predicted
            slices of the series; `prevalence`; `refuse`.
        table: the slice table, with the columns `NEEDED`.
        prevalence: of each label among the training's slices.

    Returns:
        (predictions, filled): the predictions followed by those filled in; and policy -> ids that it filled in.

    Raises:
        IchError: an unknown policy; an unreadable slice that no named policy can fill in.
    """
    unknown = [policy for policy in policies if policy not in POLICIES]
    if unknown:
        raise IchError(f"unknown policy {unknown[0]!r}; expected {', '.join(POLICIES)}")
    if "refuse" in policies and len(policies) > 1:
        raise IchError(f"the policies {', '.join(policies)} contradict each other; name refuse alone, or the others")
    if "prevalence" in policies and prevalence is None:
        raise IchError("the result's score.json lacks the labels' prevalence; name another policy")
    rows = table[table["split"] == "test"].set_index("SOPInstanceUID")
    series_of = rows["SeriesInstanceUID"].dropna()
    means = predictions.groupby(series_of.reindex(predictions.index)).mean()
    missing = images.difference(predictions.index, sort=False)
    unread = missing[missing.isin(rows.index[rows["status"] != "ok"])]
    filled: dict[str, list[str]] = {policy: [] for policy in policies if policy != "refuse"}
    values = []
    for id in unread:
        for policy in filled:
            if policy == "prevalence":
                values.append(pd.Series(prevalence, name=id))
            elif series_of.get(id) in means.index:
                values.append(means.loc[series_of[id]].rename(id))
            else:
                continue
            filled[policy].append(id)
            break
    left = unread.difference([id for ids in filled.values() for id in ids], sort=False)
    if len(left):
        why = "of a series that is unknown or has no predicted slice" if filled else "so that they have no prediction"
        raise IchError(
            f"{name_some(left)} could not be read ({', '.join(sorted(set(rows.loc[left, 'status'])))}), {why}; name a"
            " policy that can fill it in: --missing series_mean, --missing prevalence, or one after the other"
        )
    if values:
        predictions = pd.concat([predictions, pd.DataFrame(values).astype(predictions.dtypes)])
    return predictions.rename_axis(INDEX_NAME), filled


def make_submission(predictions: pd.DataFrame, rows: pd.Series, images: pd.Index) -> pd.DataFrame:
    """Return the rows of a submission, in the order of the sample submission.

    Args:
        predictions: six probabilities, indexed by SOPInstanceUID, in any order.
        rows, images: of the competition's sample submission, from `ich.competition.labels.read_ids`.

    Returns:
        Columns ID and Label (float), one row for each of the sample's.

    Raises:
        IchError: an id of the sample has no prediction, a prediction is not in the sample, or a value is not in
            [0, 1].
    """
    without = images.difference(predictions.index)
    if len(without):
        raise IchError(
            f"the sample submission asks for {name_some(without)}, which have no predictions; nothing is filled in:"
            " --missing names a policy for slices that could not be read, by the slice table; for others, predict the"
            " test set that this sample belongs to"
        )
    foreign = predictions.index.difference(images)
    if len(foreign):
        raise IchError(
            f"there are predictions of {name_some(foreign)}, which the sample submission lacks; give the sample"
            " submission of this test set"
        )
    values = predictions[list(LABELS)].to_numpy()
    wrong = ~((values >= 0) & (values <= 1)).all(axis=1)  # NaN is wrong too
    if wrong.any():
        raise IchError(f"predictions of {name_some(predictions.index[wrong])} are not in [0, 1]; predict again")
    long = to_long(predictions.loc[images])
    if not long["ID"].equals(rows):
        long = long.set_index("ID").loc[rows].reset_index()
    return long


_FILLED = f"{INDEX_NAME},policy"  # the header of NAME.filled.csv


def write_submission(submission: pd.DataFrame, path: Path, provenance: dict) -> None:
    """Write the CSV, and a .json of the same name with its provenance, number of rows and SHA-256.

    Values have nine significant digits, which distinguish all float32.

    Args:
        submission: from `make_submission`.
        path: of the CSV; the manifest has its name with .json.
        provenance: more content of the manifest: run, score, commit, …

    Raises:
        IchError: a file cannot be written.
    """
    content = submission.to_csv(index=False, lineterminator="\n", float_format="%.9g").encode()
    digest = sha256(content).hexdigest()
    manifest = {"file": path.name, "rows": len(submission), "sha256": digest, **provenance}
    with folders.locked(path.parent, wait=folders.SHORT):
        _check_ours(path, content)
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        write_json(path.with_suffix(".json"), manifest)


def write_filled(filled: dict[str, list[str]], path: Path) -> Path:
    """Write a submission's filled-in slices into a file next to it, as its manifest holds no ids.

    Args:
        filled: policy -> SOPInstanceUIDs, from `fill_missing`.
        path: the submission's CSV; `<name>.filled.csv` in its folder is replaced.

    Returns:
        The file's path.

    Raises:
        IchError: the file cannot be written.
    """
    listed = path.with_suffix(".filled.csv")
    if listed.exists() or any(filled.values()):  # the file of an earlier submission of this name would be wrong
        rows = [(id, policy) for policy, ids in filled.items() for id in ids]
        with replacing(listed) as temporary:
            pd.DataFrame(rows, columns=_FILLED.split(",")).to_csv(temporary, index=False)
    return listed


def _check_ours(path: Path, content: bytes) -> None:
    """Refuse to replace a CSV or manifest that is neither a submission of ours nor left by a kill in this one."""
    manifest, own = path.with_suffix(".json"), {sha256(content).hexdigest()}
    try:
        described = json.loads(manifest.read_text(encoding="utf-8"))
        is_foreign = not isinstance(described, dict) or described.get("file") != path.name or "sha256" not in described
        own |= set() if is_foreign else {described["sha256"]}
    except FileNotFoundError:
        is_foreign = False
    except (OSError, ValueError):
        is_foreign = True
    if is_foreign or (path.exists() and sha256_of(path) not in own):
        raise IchError(
            f"{path} and {manifest.name} exist and are not a submission with its manifest, or the CSV was changed"
            " since; name another folder (--out) or another name (--name)"
        )
    check_own(path.with_suffix(".filled.csv"), _FILLED)
