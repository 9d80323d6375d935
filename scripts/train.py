"""Train one fold.

    python scripts/train.py configs/baseline.yaml --fold 0

Writes runs/<name>/fold<k>: model.keras, history.csv, curves.png, oof.parquet. A finished fold is not trained
again; an interrupted one resumes after its last whole epoch.

More: docs/competition.md
"""

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "train")
    parser.add_argument("--fold", type=int, required=True, help="0 to folds.n - 1")
    arguments = parser.parse_args(argv)

    from ich import config
    from ich.startup import import_keras
    from ich.training.run_directory import Run

    run = Run.begin(config.load(arguments.config, arguments.overrides))
    cli.warn_of_unused(run.config.unused, "train")
    if cli.sets(arguments.overrides, "predict"):
        run.check_passes()
    work = run.work(f"fold{arguments.fold}/oof.parquet")
    import_keras()

    from ich.training import fold

    fold.train_fold(run, arguments.fold)
    work.done("train", argv)
    left = sorted({*range(run.config.folds.n)} - {*run.finished_folds()})
    then = ("train", arguments.config, "--fold", left[0]) if left else ("train_kfold", arguments.config)
    cli.wrote(
        f"{run.fold(arguments.fold)}: model.keras, history.csv, curves.png, oof.parquet",
        cli.command(*then, overrides=arguments.overrides),
    )


if __name__ == "__main__":
    cli.run(main)
