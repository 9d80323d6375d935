"""Train one fold.

    python scripts/train.py configs/baseline.yaml --fold 0

Writes runs/<name>/fold<k>: model.keras, history.csv, curves.png, oof.parquet. A fold that is finished is not trained
again, and one that was interrupted goes on after its last whole epoch.
"""

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "train")
    parser.add_argument("--fold", type=int, required=True, help="0 to folds.n - 1")
    arguments = parser.parse_args(argv)

    from ich import config
    from ich.training import fold
    from ich.training.run_directory import Run

    run = Run.begin(config.load(arguments.config, arguments.overrides))
    if cli.sets(arguments.overrides, "predict"):
        run.check_passes()
    work = run.work(f"fold{arguments.fold}/oof.parquet")
    fold.train_fold(run, arguments.fold)
    work.done("train", argv)
    print(f"fold {arguments.fold}: {run.fold(arguments.fold)}")


if __name__ == "__main__":
    cli.run(main)
