"""Predict the test set by all folds of a run.

    python scripts/predict.py runs/baseline

Writes RUN/predictions_test.parquet: the mean of the folds' probabilities. All settings are the run's own.
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a directory of runs/")
    arguments = parser.parse_args(argv)

    from ich import runs

    run = runs.Run.open(arguments.run)

    from ich import inference

    predictions = inference.predict_test(run)
    print(f"{len(predictions):,} slices predicted: {run.predictions_path}")


if __name__ == "__main__":
    cli.run(main)
