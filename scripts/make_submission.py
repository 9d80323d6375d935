"""Write the predictions of a run as the CSV that the competition accepts, checked row by row.

    python scripts/make_submission.py runs/baseline

Writes submissions/<run>.csv in the order of the sample submission (data.sample_submission, or the one in
data.sources), and submissions/<run>.json, which says where it comes from.
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_run(parser)
    parser.add_argument("--predictions", type=Path, help="default: RUN/predictions_test.parquet")
    parser.add_argument("--out", type=Path, default=Path("submissions"), help="the folder to write into")
    arguments = parser.parse_args(argv)

    from ich import archive, runs, submission

    run = runs.Run.open(arguments.run, arguments.overrides)
    data = run.config.data
    run.check_finished()
    predictions = runs.read_predictions(arguments.predictions or run.predictions_path)
    sample = data.sample_submission or archive.open_table(data.sources, "_sample_submission.csv")
    rows = submission.make_submission(predictions, sample)
    score = run.read_score()
    path = arguments.out / f"{run.path.resolve().name}.csv"
    provenance = {
        "run": str(run.path),
        "out_of_fold_weighted_log_loss": score["weighted_log_loss"],
        "prevalence_weighted_log_loss": score["of_prevalence"],
        "commit": run.environment().get("commit"),
        "config": run.config.model_dump(mode="json"),
    }
    submission.write_submission(rows, path, provenance)
    print(f"""
images         {data.images}
folds          {data.folds_path}
run            {run.path}
out-of-fold    weighted log loss {score["weighted_log_loss"]:.4f}; prevalence alone scores {score["of_prevalence"]:.4f}
submission     {path} ({len(rows):,} rows, checked against the sample submission)
provenance     {path.with_suffix(".json")}""")


if __name__ == "__main__":
    cli.run(main)
