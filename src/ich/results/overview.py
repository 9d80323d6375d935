"""Overview of results: those with common folds are compared, the others listed with their own scores."""

from collections import Counter
from collections.abc import Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ich.competition.labels import LABELS
from ich.errors import IchError, or_na
from ich.files import sha256_of
from ich.results import compare
from ich.results.compare import Results
from ich.results.result_directory import check_folds, check_result, read_mapping, read_score

_FACTS = ["model", "size", "epochs", "seconds"]


class Overview(NamedTuple):
    """Results, best first.

    Args:
        compared: a row for each result with the common folds, by its directory: the columns of
            `ich.results.compare.compare`, then model, size (pixels a side of its images), epochs and seconds (of the
            training of all folds); empty if unknown.
        others: a row for each other result: weighted_log_loss and of_prevalence as its score.json has them, the same
            four columns, and the reason why it is not compared.
        results: the predictions of the compared ones.
    """

    compared: pd.DataFrame
    others: pd.DataFrame
    results: Results


def overview(paths: Sequence[Path], folds_path: Path | None = None) -> Overview:
    """Compare the results with common folds, and list the others with the reason.

    Args:
        folds_path: of the folds; None takes the most frequent ones. The baseline of the differences is the first named
            result with these folds.

    Raises:
        IchError: a result is named twice, or there is none to compare.
    """
    twice = [path for place, path in enumerate(paths) if path in paths[:place]]
    if twice:
        raise IchError(f"{twice[0]} is named twice; name each once")
    rows = {path: _row(path) for path in paths}
    digests = Counter(row["folds_sha256"] for row in rows.values() if not row["reason"])
    shared = sha256_of(folds_path) if folds_path else max(digests, key=digests.__getitem__, default=None)
    reference = folds_path or next(
        (path for path, row in rows.items() if row["folds_sha256"] == shared and not row["reason"]), Path()
    )
    comparable = []
    for path, row in rows.items():
        if row["reason"]:
            continue
        try:
            check_folds(path, shared, reference)
            comparable.append(compare.read_results([path], folds_path))
        except IchError as error:
            row["reason"] = str(error)
    if not comparable:
        raise IchError("none of the results can be compared: " + "; ".join(row["reason"] for row in rows.values()))
    listed = pd.DataFrame(rows.values(), index=pd.Index(map(str, rows), name="run"))
    results = comparable[0]._replace(oof={name: oof for result in comparable for name, oof in result.oof.items()})
    scores = compare.compare(results.table, results.oof, baseline=next(iter(results.oof)))
    others = listed.drop(index=[*results.oof])[["weighted_log_loss", "of_prevalence", *_FACTS, "reason"]]
    return Overview(
        scores.join(listed[_FACTS]).sort_values("weighted_log_loss"), others.sort_values("weighted_log_loss"), results
    )


def best(paths: Sequence[Path]) -> Path:
    """Return the result with the lowest out-of-fold score.

    Raises:
        IchError: one has no score, or was made with other folds than the first.
    """
    for path in paths:
        check_result(path)
    for path in paths[1:]:
        check_folds(path, read_mapping(paths[0] / "environment.json").get("folds_sha256"), paths[0])
    return min(paths, key=lambda path: read_score(path)["weighted_log_loss"])


def as_text(overview: Overview) -> dict[str, pd.DataFrame]:
    """Return an overview as title -> table of text, without empty tables."""
    scores = overview.compared
    compared = scores[["weighted_log_loss"]].map("{:.4f}".format).set_axis(["log loss"], axis=1)
    compared["95 % interval"] = [f"{row.low:.4f} to {row.high:.4f}" for row in scores.itertuples()]
    difference = [
        (f"{row.difference:+.4f}", f"{row.difference_low:+.4f} to {row.difference_high:+.4f}")
        for row in scores.itertuples()
    ]
    compared["difference"], compared["its interval"] = zip(*difference, strict=True)
    compared.loc[next(iter(overview.results.oof)), ["difference", "its interval"]] = "", ""  # from itself
    others = overview.others[["weighted_log_loss", "of_prevalence"]].map(or_na, form=".4f")
    others = others.set_axis(["log loss", "prevalence"], axis=1).join(_facts_as_text(overview.others))
    tables = {
        "Out-of-fold weighted log loss": compared.join(_facts_as_text(scores)),
        "Log loss by label": scores[list(LABELS)].map("{:.4f}".format),
        "Not compared": others.assign(reason=overview.others["reason"]),
    }
    return {title: table.rename_axis(None) for title, table in tables.items() if len(table)}


def _facts_as_text(table: pd.DataFrame) -> pd.DataFrame:
    facts = table[_FACTS].astype(object).where(table[_FACTS].notna(), "")
    facts["seconds"] = [_duration(seconds) for seconds in table["seconds"]]
    for name in ("size", "epochs"):
        facts[name] = [value if isinstance(value, str) else f"{value:.0f}" for value in facts[name]]
    return facts.rename(columns={"seconds": "trained in"})


def _duration(seconds: float) -> str:
    if isnan(seconds):
        return ""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _row(path: Path) -> dict[str, Any]:
    """Return a result's row of the overview; with the reason if it has no predictions to compare."""
    row: dict[str, Any] = {"weighted_log_loss": nan, "of_prevalence": nan, "folds_sha256": None, "reason": ""}
    row |= {"model": None, "size": nan, "epochs": nan, "seconds": nan}
    try:
        check_result(path)
        config = read_mapping(path / "config.yaml")
        environment = read_mapping(path / "environment.json")
        row |= {"folds_sha256": environment.get("folds_sha256")} | _facts(path, config, environment)
        if (path / "score.json").exists():
            row |= {name: read_score(path)[name] for name in ("weighted_log_loss", "of_prevalence")}
        if not (path / "oof.parquet").exists():
            row["reason"] = _unfinished(path, config)
    except IchError as error:
        row["reason"] = str(error)
    return row


def _facts(path: Path, config: dict, environment: dict) -> dict[str, Any]:
    """Return model, size, epochs and seconds, as far as a result's files have them."""

    def value(section: str, key: str) -> Any:
        content = config.get(section)
        return content.get(key) if isinstance(content, dict) else None

    if made_of := value("blend", "runs"):
        return {"model": f"blend of {len(made_of)}"}
    if "first_stage" in environment:
        kind = value("sequence", "kind")
        epochs = value("sequence", "epochs") if kind in ("recurrent", "blend") else nan
        return {"model": f"second stage ({kind})", "epochs": epochs}
    return {
        "model": value("model", "name"),
        "size": value("preprocess", "size"),
        "epochs": value("train", "epochs"),
        "seconds": _seconds(path, value("folds", "n")),
    }


def _seconds(path: Path, folds: int | None) -> float:
    """Return the seconds that the training of all folds took; NaN if unknown for one."""
    try:
        return sum(float(read_mapping(path / f"fold{k}/training.json")["seconds"]) for k in range(folds or 0)) or nan
    except (IchError, KeyError, TypeError, ValueError):
        return nan


def _unfinished(path: Path, config: dict) -> str:
    section = config.get("folds")
    folds = section.get("n", 0) if isinstance(section, dict) else 0
    left = [str(k) for k in range(folds) if not (path / f"fold{k}/oof.parquet").exists()]
    if left and "blend" not in config:
        return f"unfinished: of its {folds} folds, {', '.join(left)} are not trained"
    return "it has no oof.parquet: run the command that writes it again"
