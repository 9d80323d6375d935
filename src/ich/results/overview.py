"""All results at a glance, and which of them is the best."""

from collections.abc import Sequence
from pathlib import Path

from ich.errors import IchError
from ich.results.result_directory import check_result, read_mapping, read_score


def best(paths: Sequence[Path]) -> Path:
    """Return the result with the lowest out-of-fold score; of one, that one.

    Raises:
        IchError: one has no score, or they do not share their folds, so that their scores cannot be compared.
    """
    for path in paths:
        check_result(path)
    if len(paths) > 1 and len({read_mapping(path / "environment.json").get("folds_sha256") for path in paths}) > 1:
        raise IchError(
            f"{', '.join(map(str, paths))} do not share their folds, so that their scores cannot be compared; name one"
        )
    return min(paths, key=lambda path: read_score(path)["weighted_log_loss"])
