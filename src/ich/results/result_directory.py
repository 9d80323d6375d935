"""The directory of a result, be it a run's, a second stage's or a blend's: what all of these hold.

oof.parquet               out-of-fold predictions of every labelled slice
predictions_test.parquet  predictions of the test set, made in the same way
score.json                of the first, with at least what `ich.competition.metrics.summary` gives
config.yaml               what made it, defaults written out
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
        what: what it does, or who has it, for the message.

    Raises:
        IchError: it is not there, or holds something else.
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
    """Refuse a path that is no result's directory, and name those beside it with the likest names.

    Raises:
        IchError: it is not there, or has no config.yaml.
    """
    if (folder / "config.yaml").is_file():
        return
    found = f"{folder} has no config.yaml, as every result of train_kfold, train_sequence and blend has: restore it"
    if not folder.is_dir():
        found = f"{folder} is a file, expected a directory of runs/" if folder.exists() else not_there(folder)
    places = folder.parent, Path("runs")
    beside = {path.parent.name: path.parent for place in places for path in sorted(place.glob("*/config.yaml"))}
    near = get_close_matches(folder.name, beside, n=3, cutoff=0)
    others = f", such as {' or '.join(str(beside[name]) for name in near)}" if near else ""
    raise IchError(f"{found}; name a directory of a run, a second stage or a blend{others}")


def check_folds(folder: Path, digest: str | None, reference: Path) -> None:
    """Refuse a result that was made with other folds than a file, or another result, has.

    Args:
        digest: SHA-256 of the file of folds.
        reference: the file, or the result, for the message.

    Raises:
        IchError: it was, or nothing says which folds it was made with.
    """
    if read_mapping(folder / "environment.json").get("folds_sha256") != digest:
        raise IchError(
            f"{folder} was made with other folds than {reference}, and results of different folds cannot be compared"
            " or combined; leave it out, or name the file of its folds"
        )


def members(folder: Path) -> list[Path]:
    """The results that a blend was made of; none of a result of another kind.

    Raises:
        IchError: its config cannot be read, or does not tell.
    """
    blended = read_mapping(folder / "config.yaml").get("blend", {"runs": []})
    try:
        return [Path(one) for one in blended["runs"]]
    except (TypeError, KeyError) as error:
        raise IchError(
            f"{folder / 'config.yaml'} does not say what was blended; restore it, or make the blend again"
        ) from error


def how_to_predict(folder: Path) -> str:
    """What to run for a result's test predictions: a run predicts, a blend is made of its members' anew.

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
            return f"give another result: of the table {tables[0]}, on which {folder} was trained, there is no test set"
    lacking = [path for path in made_of if read_provenance(path / "predictions_test.parquet") is None]
    return ", then ".join([*map(how_to_predict, lacking), again])


def check_alike(folder: Path) -> None:
    """Refuse a result whose out-of-fold and test predictions were not made in one way, by the same models.

    What is fitted on the first (weights of a blend, a calibration) would not fit the second, nor would their score.

    Raises:
        IchError: they were not, or one is missing.
    """
    oof, test = _provenance_of(folder, "oof.parquet"), _provenance_of(folder, "predictions_test.parquet")
    differing = [
        f"{key}: {oof.get(key)} out of fold, {test.get(key)} on the test set"
        for key in {**oof, **test}
        if oof.get(key) != test.get(key)
    ]
    if differing:
        raise IchError(
            f"the predictions of {folder} were made in two ways ({'; '.join(differing)}); to make both in one,"
            f" {how_to_predict(folder)}"
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
        IchError: it is missing, or lacks what every result has.
    """
    if (folder / "config.yaml").exists() and not (folder / "score.json").exists():
        raise IchError(f"{folder / 'score.json'} is missing; {how_to_predict(folder)}")
    score = read_mapping(folder / "score.json", "holds the out-of-fold score")
    lacking = {"weighted_log_loss", "of_prevalence"} - score.keys()
    if lacking:
        raise IchError(f"{folder / 'score.json'} lacks {', '.join(sorted(lacking))}; score the result again")
    if not all(isinstance(score[key], (int, float)) for key in ("weighted_log_loss", "of_prevalence")):
        raise IchError(f"{folder / 'score.json'} holds scores that are no numbers; score the result again")
    return score


def score_file(folder: Path) -> dict:
    """What score.json holds; nothing where there is none.

    Raises:
        IchError: it cannot be read.
    """
    return read_mapping(folder / "score.json") if (folder / "score.json").exists() else {}


def share(loss: float, floor: float) -> str:
    """A loss as a share of the prevalence baseline's; n/a where that is 0 to the four digits shown of it."""
    return or_na(loss / floor if round(floor, 4) > 0 else nan, ".2f")


def shortcomings(name: str | Path, score: Mapping) -> list[str]:
    """Say what is wrong with a result: worse than what needs no model or than its parts, or shifted probabilities.

    Losses are compared to the four digits that are shown of them.

    Args:
        name: of the result.
        score: as score.json holds it: weighted_log_loss, of_prevalence, and what else there is.

    Returns:
        A sentence each; none of a sound result.
    """
    loss, floor = (round(score[key], 4) for key in ("weighted_log_loss", "of_prevalence"))
    told = []
    if loss >= floor:
        told.append(
            f"{name} scores {loss:.4f} out of fold, no better than the prevalence baseline, {floor:.4f}: predicting"
            f" each label's share of the slices everywhere is {'better' if loss > floor else 'as good'}"
        )
    parts = {"its first stage": score.get("of_first_stage")}
    intervals = score.get("of_kinds_intervals", {})  # of the blend's loss minus the kind's; around 0 it is noise
    kinds = {kind: part for kind, part in score.get("of_kinds", {}).items() if intervals.get(kind, [1])[0] > 0}
    parts |= {f"its kind {kind} alone": part for kind, part in kinds.items()}
    parts |= {f"its member {run}": part for run, part in score.get("runs", {}).items()}
    parts["one pass over the slices as they are"] = score.get("plain_weighted_log_loss")
    losses = {what: part for what, part in parts.items() if part is not None}
    best, best_loss = min(losses.items(), key=lambda item: item[1], default=(None, nan))
    if loss > round(best_loss, 4):  # never of nan
        differences = _differences(score)
        verdict, interval = "that is to be preferred", "no interval in its score.json"
        if best in differences:
            low, high = differences[best]
            interval = f"95 % interval over patients {low:+.4f} to {high:+.4f}"
            verdict = verdict if low > 0 else "the interval holds 0, so chance may make the difference"
        told.append(
            f"{name} scores {loss:.4f} out of fold, worse than {best}, {best_loss:.4f} (by"
            f" {score['weighted_log_loss'] - best_loss:+.4f}, {interval}): {verdict}"
        )
    if shift := score.get("shift"):
        means = [f"{label} {of['predicted']:.4f} (found {of['found']:.4f})" for label, of in shift["labels"].items()]
        told.append(
            f"{name} was trained with {' and '.join(shift['causes'])}: probabilities are shifted, which costs log loss;"
            f" their means out of fold are {', '.join(means)}. scripts/blend.py {name} --calibrate platt --out"
            f" {name}-calibrated corrects them"
        )
    return told


def _differences(score: Mapping) -> dict[str, list[float]]:
    """Return the 95 % intervals of a score minus that of what it was made of, by the names of `shortcomings`."""
    intervals = {
        "its first stage": score.get("of_first_stage_interval"),
        "one pass over the slices as they are": score.get("plain_interval"),
    }
    intervals |= {f"its kind {kind} alone": one for kind, one in score.get("of_kinds_intervals", {}).items()}
    if "gain_interval" in score:  # of the best member's score minus the blend's
        low, high = score["gain_interval"]
        intervals[f"its member {score['best_run']}"] = [-high, -low]
    return {what: interval for what, interval in intervals.items() if interval is not None}


def passes_of(folder: Path) -> dict:
    """How a result's predictions were made.

    Returns:
        Of a run, `tta` and `mean`, as far as its file tells; of what was made of others, the same of each by its
        name.
    """
    facts = read_mapping(folder / "environment.json", "says what the result was made with")
    if "passes" in facts:
        return facts["passes"]
    made = read_provenance(folder / "oof.parquet") or {}
    return {key: made[key] for key in ("tta", "mean") if made.get(key)}


def extracted_in(folder: Path) -> dict:
    """The passes that features were extracted in, `tta`, and their `mean`; nothing if there are no features.

    Args:
        folder: of a run.
    """
    made = read_provenance(folder / "fold0" / "features" / "oof.parquet") or {}
    return {key: made[key] for key in ("tta", "mean") if key in made}


def made_of(folder: Path) -> list[Path]:
    """The results beside a result that were made of its out-of-fold predictions as they are now."""
    oof = folder / "oof.parquet"
    if not oof.exists():
        return []
    digest, found = sha256_of(oof), []
    for path in sorted(folder.resolve().parent.glob("*/environment.json")):
        with suppress(IchError):  # of what cannot be read nobody can tell
            facts = read_mapping(path)
            if digest in (*facts.get("scores_sha256", ()), *facts.get("made_of", {}).values()):
                found.append(folder.parent / path.parent.name)
    return found


def describe(folder: Path) -> dict:
    """Where the test predictions come from, for the manifest of what is made of them.

    Returns:
        run; commit of the code that trained it, None if nobody knows; the score out of fold and that of the
        prevalence; `shortcomings` as warnings; how predictions were made (TTA passes, their mean, digests of
        the models; of a second stage and a blend, the passes of each result that they were made of), as far as their
        files tell; the config and the SHA-256 of its file.

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
            f"{folder / 'config.yaml'}, which says what made the result, cannot be read ({one_line(error)})"
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
