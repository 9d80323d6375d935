"""Blend runs by weights fitted on their out-of-fold predictions; report the gain on patients not fitted on.

    python scripts/blend.py runs/baseline runs/gold --out runs/blend
    python scripts/blend.py runs/gold --calibrate temperature --out runs/gold-calibrated

Writes OUT as a run's directory, ready for make_submission: oof.parquet, each fold blended by weights fitted on the
others; score.json, with the gain over the best run, and the weights and calibration fitted on all folds (see
ich.results.fitted_blend); predictions_test.parquet, blended by those weights, if all runs have test predictions;
config.yaml and environment.json.
Runs must share their folds; other blends and sequence runs may be among them. A single run needs --calibrate or
--any-at-least-max: a blend of it alone would predict the same.

More: docs/better_results.md
"""

import dataclasses
from pathlib import Path

from ich import cli
from ich.errors import IchError


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a directory of runs/")
    parser.add_argument("--out", type=Path, required=True, help="the directory to write, such as runs/blend")
    parser.add_argument(
        "--method",
        default="weights",
        help="weights (default), mean, logit_mean or rank_mean; a blend by rank_mean cannot predict other scans",
    )
    parser.add_argument("--by-label", action="store_true", help="fit weights for each label")
    parser.add_argument(
        "--calibrate", metavar="KIND", help="temperature or platt: try it, and keep it for the labels that it helps"
    )
    parser.add_argument(
        "--any-at-least-max",
        action="store_true",
        help="try to raise any to the largest of the five, keep it if it helps",
    )
    parser.add_argument("--folds", type=Path, help="the file of folds (default: the first run's)")
    arguments = parser.parse_args(argv)
    copies = (
        arguments.method in ("weights", "mean", "logit_mean") and not arguments.by_label
    )  # such a blend of a single run predicts the same
    if len(arguments.runs) == 1 and copies and not (arguments.calibrate or arguments.any_at_least_max):
        raise IchError(
            f"{arguments.runs[0]} is the only run named, and a blend of one run predicts the same as the run; name two"
            " runs or more, or add --calibrate temperature, --calibrate platt or --any-at-least-max"
        )

    import numpy as np

    from ich.competition.labels import LABELS
    from ich.results import blend, commands, compare, result_directory

    recipe = blend.Recipe(arguments.method, arguments.by_label, arguments.calibrate, arguments.any_at_least_max)
    results = compare.read_results(arguments.runs, arguments.folds)
    config = {
        "name": arguments.out.resolve().name,
        "data": results.data,
        "blend": {"runs": list(results.oof), **dataclasses.asdict(recipe)},
    }
    with compare.working_in(arguments.out, config):
        members = np.stack(list(results.oof.values()))
        blended = blend.nested(members, results.table, recipe).astype(np.float32)  # scored as it is written
        fitted = blend.fit(members, results.table, recipe)

        files = ("oof.parquet", "predictions_test.parquet")
        work = commands.Work(arguments.out, *files, made_of=commands.read(*arguments.runs))
        score = compare.judge(results, blended) | fitted.describe(list(results.oof))
        lacking = [run for run in arguments.runs if not (run / "predictions_test.parquet").exists()]
        test = None
        if not lacking:
            ids, theirs = compare.read_test(arguments.runs)
            test = compare.frame(ids, fitted(theirs))
        compare.write_results(arguments.out, config, results, blended, test, score)
        work.done("blend", argv)

    for run, loss in score["runs"].items():
        shares = [f"{score['weights'][label][run]:.3f}" for label in (LABELS if arguments.by_label else LABELS[:1])]
        print(f"  {run}  log loss {loss:.4f}  weight {' '.join(shares)}")
    for trial in ("calibration", "any_at_least_max"):
        for label, trial_score in score.get(trial, {}).items():
            print(
                f"  {trial} of {label}: gains {trial_score['gain']:+.5f} ± {trial_score['standard_error']:.5f},"
                f" {'kept' if trial_score['kept'] else 'left out'}"
            )
    print(
        f"out-of-fold weighted log loss: {score['weighted_log_loss']:.4f}; gain over"
        f" {score['best_run']}: {score['gain']:+.4f} ±"
        f" {score['gain_standard_error']:.4f} (standard error over patients)"
    )
    cli.warn(result_directory.shortcomings(arguments.out, score))
    if lacking:
        print(f"no test predictions are blended, as {', '.join(map(str, lacking))} has none:")
        print(f"{', then '.join(map(result_directory.how_to_predict, lacking))}, then this command again")
    cli.wrote(
        f"{arguments.out}: {', '.join(files if test is not None else files[:1])}, score.json",
        *([cli.command("make_submission", arguments.out)] if test is not None else []),
    )


if __name__ == "__main__":
    cli.run(main)
