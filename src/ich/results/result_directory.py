"""The directory of a result (a run, a second stage or a blend), with the files that all of these have.

oof.parquet               out-of-fold predictions of every labeled slice
predictions_test.parquet  predictions of the test set, made in the same way
score.json                out-of-fold scores, with at least the content of `ich.competition.metrics.summary`
config.yaml               the config, with defaults
environment.json          versions, commit and machine
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from hashlib import sha256
from math import nan
from pathlib import Path

import yaml

from ich.errors import IchError, not_there, one_line, or_na
from ich.files import sha256_of
from ich.results.predictions import read_provenance


def read_mapping(path: Path, what: str = "every result of train_kfold, train_sequence and blend has") -> dict:
    """Read a small JSON or YAML file of a result.

    Args:
        what: a clause on the file for the message, after "which".

    Raises:
        IchError: it is missing, unreadable, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        if not isinstance(content, dict):
            raise TypeError(f"it holds {type(content).__name__}, expected keys with values")
        return content
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise IchError(
            f"{path}, which {what}, cannot be read ({one_line(error)});"
            " restore it, or make the result again under another name"
        ) from error


def check_result(folder: Path) -> None:
    """Refuse a path that is not a result's directory; the message suggests results of similar names.

    Raises:
        IchError: it does not exist, or has no config.yaml.
    """
    if (folder / "config.yaml").is_file():
        return
    problem = f"{folder} has no config.yaml, as every result of train_kfold, train_sequence and blend has: restore it"
    if not folder.is_dir():
        problem = f"{folder} is a file, expected a directory of runs/" if folder.exists() else not_there(folder)
    places = folder.parent, Path("runs")
    results = {path.parent.name: path.parent for place in places for path in sorted(place.glob("*/config.yaml"))}
    similar = get_close_matches(folder.name, results, n=3, cutoff=0)
    suggestions = f", such as {' or '.join(str(results[name]) for name in similar)}" if similar else ""
    raise IchError(f"{problem}; name a directory of a run, a second stage or a blend{suggestions}")


def check_folds(folder: Path, digest: str | None, reference: Path) -> None:
    """Refuse a result that was made with other folds than a file's or another result's.

    Args:
        digest: SHA-256 of the file of folds.
        reference: the file, or the result, for the message.

    Raises:
        IchError: the folds differ, or environment.json does not name them.
    """
    if read_mapping(folder / "environment.json").get("folds_sha256") != digest:
        raise IchError(
            f"{folder} was made with other folds than {reference}, and results of different folds cannot be compared"
            " or combined; leave it out, or name the file of its folds"
        )


def members(folder: Path) -> list[Path]:
    """Return the members of a blend; none for a result of another kind.

    Raises:
        IchError: its config cannot be read, or lacks the members.
    """
    blended = read_mapping(folder / "config.yaml").get("blend", {"runs": []})
    try:
        return [Path(run) for run in blended["runs"]]
    except (TypeError, KeyError) as error:
        raise IchError(
            f"{folder / 'config.yaml'} lacks the members of the blend; restore it, or make the blend again"
        ) from error


def how_to_predict(folder: Path) -> str:
    """Return what to run for a result's test predictions: predict.py, or for a blend its command again.

    Raises:
        IchError: its config or environment cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        return f"restore {folder}, which has no config.yaml"
    made_of, again = members(folder), f"run scripts/predict.py {folder}"
    if made_of:
        again = f"run the command of scripts/blend.py again that made {folder}"
    else:
        made_of = list(map(Path, read_mapping(folder / "environment.json").get("first_stage", ())))
        if tables := [path for path in made_of if path.is_file()]:
            return f"give another result: {folder} was trained on the table {tables[0]}, which has no test set"
    unpredicted = [path for path in made_of if read_provenance(path / "predictions_test.parquet") is None]
    return ", then ".join([*map(how_to_predict, unpredicted), again])


def check_alike(folder: Path) -> None:
    """Refuse a result whose out-of-fold and test predictions were made in different ways, or by other models.

    Weights and calibration fitted on the first would not fit the second, and its score would not apply to them.

    Raises:
        IchError: they differ, or one is missing.
    """
    oof, test = _provenance_of(folder, "oof.parquet"), _provenance_of(folder, "predictions_test.parquet")
    differing = [
        f"{key}: {oof.get(key)} out of fold, {test.get(key)} on the test set"
        for key in {**oof, **test}
        if oof.get(key) != test.get(key)
    ]
    if differing:
        raise IchError(
            f"the predictions of {folder} were made in two ways ({'; '.join(differing)}); to make both in one"
            f" way, {how_to_predict(folder)}"
        )


def _provenance_of(folder: Path, name: str) -> dict:
    provenance = read_provenance(folder / name)
    if provenance is None:
        state = "is damaged" if (folder / name).exists() else "is missing"
        raise IchError(f"{folder / name} {state}; {how_to_predict(folder)}")
    return provenance


def read_score(folder: Path) -> dict:
    """Return the content of score.json.

    Raises:
        IchError: it is missing, or lacks the scores that every result has.
    """
    if (folder / "config.yaml").exists() and not (folder / "score.json").exists():
        raise IchError(f"{folder / 'score.json'} is missing; {how_to_predict(folder)}")
    score = read_mapping(folder / "score.json", "holds the out-of-fold score")
    lacking = {"weighted_log_loss", "of_prevalence"} - score.keys()
    if lacking:
        raise IchError(f"{folder / 'score.json'} lacks {', '.join(sorted(lacking))}; score the result again")
    if not all(isinstance(score[key], (int, float)) for key in ("weighted_log_loss", "of_prevalence")):
        raise IchError(f"{folder / 'score.json'} holds scores that are not numbers; score the result again")
    return score


def score_file(folder: Path) -> dict:
    """Return the content of score.json, unchecked; empty if there is none.

    Raises:
        IchError: it cannot be read.
    """
    return read_mapping(folder / "score.json") if (folder / "score.json").exists() else {}


def share(loss: float, floor: float) -> str:
    """Return a loss as a share of the prevalence baseline's; n/a if that is 0 in the four digits shown."""
    return or_na(loss / floor if round(floor, 4) > 0 else nan, ".2f")


def shortcomings(name: str | Path, score: Mapping) -> list[str]:
    """Return warnings about a result: worse than the prevalence baseline or its parts, or shifted probabilities.

    Losses are compared in the four digits that are shown.

    Args:
        name: of the result.
        score: the content of score.json: weighted_log_loss, of_prevalence, and more if present.

    Returns:
        A sentence each; empty for a sound result.
    """
    loss, floor = (round(score[key], 4) for key in ("weighted_log_loss", "of_prevalence"))
    warnings = []
    if loss >= floor:
        warnings.append(
            f"{name} scores {loss:.4f} out of fold, no better than the prevalence baseline, {floor:.4f}: predicting"
            f" each label's share of the slices everywhere is {'better' if loss > floor else 'as good'}"
        )
    parts = {"its first stage": score.get("of_first_stage")}
    intervals = score.get("of_kinds_intervals", {})  # of the blend's loss minus the kind's; one around 0 is noise
    kinds = {kind: part for kind, part in score.get("of_kinds", {}).items() if intervals.get(kind, [1])[0] > 0}
    parts |= {f"its kind {kind} alone": part for kind, part in kinds.items()}
    parts |= {f"its member {run}": part for run, part in score.get("runs", {}).items()}
    parts["one pass over the slices as they are"] = score.get("plain_weighted_log_loss")
    losses = {what: part for what, part in parts.items() if part is not None}
    best, best_loss = min(losses.items(), key=lambda item: item[1], default=(None, nan))
    if loss > round(best_loss, 4):  # False for NaN
        differences = _differences(score)
        verdict, interval = "that is to be preferred", "no interval in its score.json"
        if best in differences:
            low, high = differences[best]
            interval = f"95 % interval over patients {low:+.4f} to {high:+.4f}"
            verdict = verdict if low > 0 else "the interval holds 0, so chance may make the difference"
        warnings.append(
            f"{name} scores {loss:.4f} out of fold, worse than {best}, {best_loss:.4f} (by"
            f" {score['weighted_log_loss'] - best_loss:+.4f}, {interval}): {verdict}"
        )
    if shift := score.get("shift"):
        shifts = [
            f"{label} {means['predicted']:.4f} (found {means['found']:.4f})" for label, means in shift["labels"].items()
        ]
        warnings.append(
            f"{name} was trained with {' and '.join(shift['causes'])}: probabilities are shifted, which costs log loss;"
            f" their means out of fold are {', '.join(shifts)}. scripts/blend.py {name} --calibrate platt --out"
            f" {name}-calibrated corrects them"
        )
    return warnings


def _differences(score: Mapping) -> dict[str, list[float]]:
    """Return 95 % intervals of a score minus those of its parts, by the parts' names in `shortcomings`."""
    intervals = {
        "its first stage": score.get("of_first_stage_interval"),
        "one pass over the slices as they are": score.get("plain_interval"),
    }
    intervals |= {f"its kind {kind} alone": ends for kind, ends in score.get("of_kinds_intervals", {}).items()}
    if "gain_interval" in score:  # of the best member's score minus the blend's
        low, high = score["gain_interval"]
        intervals[f"its member {score['best_run']}"] = [-high, -low]
    return {what: interval for what, interval in intervals.items() if interval is not None}


def passes_of(folder: Path) -> dict:
    """Return the TTA passes of a result's predictions, and their mean.

    Returns:
        For a run, `tta` and `mean`, if its file has them; for a result made of others, the same by the name of each.
    """
    facts = read_mapping(folder / "environment.json", "says what the result was made with")
    if "passes" in facts:
        return facts["passes"]
    provenance = read_provenance(folder / "oof.parquet") or {}
    return {key: provenance[key] for key in ("tta", "mean") if provenance.get(key)}


def extracted_in(folder: Path) -> dict:
    """Return the TTA passes of a run's extracted features, `tta`, and their `mean`; empty without features.

    Args:
        folder: of a run.
    """
    provenance = read_provenance(folder / "fold0" / "features" / "oof.parquet") or {}
    return {key: provenance[key] for key in ("tta", "mean") if key in provenance}


def made_of(folder: Path) -> list[Path]:
    """Return the results in the same folder that were made of a result's current out-of-fold predictions."""
    oof = folder / "oof.parquet"
    if not oof.exists():
        return []
    digest, dependent = sha256_of(oof), []
    for path in sorted(folder.resolve().parent.glob("*/environment.json")):
        with suppress(IchError):  # unreadable: unknown what it was made of
            facts = read_mapping(path)
            if digest in (*facts.get("scores_sha256", ()), *facts.get("made_of", {}).values()):
                dependent.append(folder.parent / path.parent.name)
    return dependent


def describe(folder: Path) -> dict:
    """Return the provenance of test predictions, for the manifest of a submission.

    Returns:
        run; commit of the code that trained it, None if unknown; the out-of-fold score and that of the prevalence
        baseline; `shortcomings` as warnings; how predictions were made (TTA passes, their mean, digests of the models;
        for a second stage and a blend, the passes of each result that they were made of), as far as their files have
        it; the config and the SHA-256 of its file.

    Raises:
        IchError: a file is missing or cannot be read, or predictions were made in two ways.
    """
    check_result(folder)
    check_alike(folder)
    score = read_score(folder)
    try:
        text = (folder / "config.yaml").read_bytes()
        config = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise IchError(
            f"{folder / 'config.yaml'}, which holds the config of the result, cannot be read ({one_line(error)})"
        ) from error
    facts = read_mapping(folder / "environment.json", "says what the result was made with")
    passes = facts.get("passes")
    return {
        "run": str(folder),
        "commit": facts.get("commit"),
        "out_of_fold_weighted_log_loss": score["weighted_log_loss"],
        "prevalence_weighted_log_loss": score["of_prevalence"],
        "warnings": shortcomings(folder, score),
        "predictions": _provenance_of(folder, "predictions_test.parquet") | ({"passes": passes} if passes else {}),
        "config_sha256": sha256(text).hexdigest(),
        "config": config,
    }
