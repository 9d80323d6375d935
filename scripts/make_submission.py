"""Write the predictions of a result as the CSV that the competition accepts, checked row by row.

    python scripts/make_submission.py runs/baseline
    python scripts/make_submission.py runs/baseline --missing series_mean --missing prevalence
    python scripts/make_submission.py runs/baseline runs/baseline-sequence
    python scripts/make_submission.py predictions/test --sample-submission sample.csv

Writes submissions/<name>.csv in the order of the sample submission, and submissions/<name>.json, its provenance. Given
several results of the same folds, it submits the one with the best out-of-fold score. It also takes a folder that
predict_scans.py --all-series --no-slabs wrote from the competition's test slices.

A test slice that could not be read has no prediction. The command then refuses to write a submission, unless --missing
names a policy: series_mean fills in the mean of the slice's series, prevalence each label's share of the training
slices; of several policies, the first that applies. The JSON file counts the slices that each policy filled in;
NAME.filled.csv lists them.

More: docs/competition.md
"""

import shlex
from pathlib import Path

from ich import cli
from ich.errors import IchError


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "results",
        type=Path,
        nargs="+",
        metavar="RESULT",
        help="a directory of runs/, of a run, a second stage or a blend; of several, the best is submitted; or a folder"
        " that predict_scans.py wrote",
    )
    cli.add_overrides(parser, "make_submission", "the submitted result's config")
    parser.add_argument(
        "--sample-submission", type=Path, help="default: data.sample_submission, or that of data.sources"
    )
    parser.add_argument(
        "--missing",
        action="append",
        metavar="POLICY",
        help="how to fill in a slice that could not be read: series_mean, prevalence or refuse, the default;"
        " several are tried in their order",
    )
    parser.add_argument("--out", type=Path, default=Path("submissions"), help="the folder to write into")
    parser.add_argument("--name", help="name of both files (default: the result's)")
    arguments = parser.parse_args(argv)
    if arguments.name is not None and (not arguments.name or Path(arguments.name).name != arguments.name):
        raise IchError(f"--name {arguments.name!r} is no name of a file; the folder is --out")
    if arguments.sample_submission:
        cli.refuse(arguments.overrides, ["data.sources", "data.sample_submission"], "beside --sample-submission")
    if not arguments.missing or arguments.missing == ["refuse"]:
        cli.refuse(arguments.overrides, ["data.images"], "without a policy (--missing) that fills in slices")

    from ich import config, folders
    from ich.competition import labels, submission
    from ich.dicom import archive
    from ich.images import slice_table
    from ich.results import commands, overview, predictions, result_directory

    policies = arguments.missing or ["refuse"]
    filled: dict[str, list[str]] = {}
    if of_scans := [path for path in arguments.results if folders.PREDICTIONS.is_in(path)]:
        from ich.own_scans import submitted

        result = of_scans[0]
        if len(arguments.results) > 1:
            raise IchError(f"{result} holds predictions of scans, which are not compared with others; give it alone")
        if arguments.sample_submission is None:
            raise IchError(f"{result} holds predictions of scans, without a config; name --sample-submission")
        cli.refuse(arguments.overrides, cli.USES["make_submission"], f"on {result}, predictions of scans")
        rows, images = labels.read_ids(arguments.sample_submission)
        probabilities, table, score, provenance = submitted.read_folder(result, images)
    else:
        result = overview.best(arguments.results)
        provenance = result_directory.describe(result)
        score = result_directory.read_score(result)
        probabilities = predictions.read_predictions(result / "predictions_test.parquet")
        sample = arguments.sample_submission
        if sample is None:
            data = config.load_data(result / "config.yaml", arguments.overrides)
            if data.sample_submission:
                reason = f"beside data.sample_submission={data.sample_submission}"
                cli.refuse(arguments.overrides, ["data.sources"], reason)
            sample = data.sample_submission or archive.open_table(data.sources, "_sample_submission.csv")
        rows, images = labels.read_ids(sample)
        if policies != ["refuse"]:
            data = config.load_data(result / "config.yaml", arguments.overrides)
            table = slice_table.read_table(data.images / "slices.parquet", submission.NEEDED)
    cli.warn(provenance["warnings"])
    if policies != ["refuse"]:
        probabilities, filled = submission.fill_missing(probabilities, images, policies, table, score.get("prevalence"))
    long = submission.make_submission(probabilities, rows, images)
    path = arguments.out / f"{arguments.name or result.resolve().name}.csv"
    missing = {policy: len(ids) for policy, ids in filled.items()}
    executed = [record["command"] for record in commands.read(*arguments.results)] + [
        commands.as_shell_line("make_submission", argv)
    ]
    how = {"missing": {"policies": policies, "filled": missing}, "commands": executed}
    submission.write_submission(long, path, how | provenance)
    listed = submission.write_filled(filled, path)
    for policy, ids in filled.items():
        print(f"filled in by {policy}: {len(ids):,} slice(s){f', listed in {listed}' if ids else ''}")
    if len(arguments.results) > 1:
        for candidate in arguments.results:
            loss = result_directory.read_score(candidate)["weighted_log_loss"]
            print(f"  {candidate}  log loss {loss:.4f}{'  the best, submitted' if candidate == result else ''}")
    print(
        f"submitted: {result}, out-of-fold weighted log loss {score['weighted_log_loss']:.4f}; the prevalence baseline"
        f" scores {score['of_prevalence']:.4f}"
    )
    competition = "rsna-intracranial-hemorrhage-detection"
    upload = ["kaggle", "competitions", "submit", "-c", competition, "-f", str(path), "-m", path.stem]
    cli.wrote(
        f"{path}, {path.with_suffix('.json')}: {len(long):,} rows, checked against the sample submission",
        shlex.join(upload),
        *([] if of_scans else [cli.command("report", result)]),
    )


if __name__ == "__main__":
    cli.run(main)
