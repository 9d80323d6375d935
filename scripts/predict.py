"""Predict the test set by all folds of a run.

    python scripts/predict.py runs/baseline

Writes RUN/predictions_test.parquet: the mean of the folds' probabilities. All settings are the run's own; where the
images are can be set anew (--set data.images=…), and so can the folder to write into (--out), if the run is read-only.
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_run(parser)
    parser.add_argument("--out", type=Path, help="the folder to write into (default: the run)")
    arguments = parser.parse_args(argv)

    from ich import runs

    run = runs.Run.open(arguments.run, arguments.overrides)

    from ich import inference

    predictions = inference.predict_test(run, arguments.out)
    out = arguments.out or run.path
    print(f"{len(predictions):,} slices predicted: {out / run.predictions_path.name}")


if __name__ == "__main__":
    cli.run(main)
