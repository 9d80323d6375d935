"""Train all folds of a run and score their out-of-fold predictions.

    python scripts/train_kfold.py configs/baseline.yaml

Writes runs/<name>: a directory for each fold, oof.parquet and score.json. Finished folds are not trained again; an
interrupted one resumes after its last whole epoch. The folds are trained one after the other, or on the workers of a
Dask cluster, one fold on each; the workers must see the same files:

    python scripts/train_kfold.py configs/baseline.yaml --set machine.backend=dask --set machine.scheduler=tcp://…:8786

More: docs/competition.md
"""

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "train_kfold")
    arguments = parser.parse_args(argv)

    from ich import config
    from ich.results import result_directory
    from ich.startup import import_keras
    from ich.training.run_directory import Run
    from ich.training.run_score import score_run

    run = Run.begin(config.load(arguments.config, arguments.overrides))
    cli.warn_of_unused(run.config.unused, "train_kfold")
    if cli.sets(arguments.overrides, "predict"):
        run.check_passes()
    work = run.work("fold*/oof.parquet", "oof.parquet")
    if len(run.finished_folds()) < run.config.folds.n:
        if run.config.machine.backend != "dask":  # a cluster's workers import it
            import_keras()

        from ich.training import fold

        fold.train_folds(run)
    score = score_run(run)
    work.done("train_kfold", argv)
    for label, loss in score["by_label"].items():
        print(f"  {label:<17}{loss:.4f}")
    print(
        f"out-of-fold weighted log loss: {score['weighted_log_loss']:.4f}"
        f" ({result_directory.share(score['weighted_log_loss'], score['of_prevalence'])} of the prevalence's"
        f" {score['of_prevalence']:.4f})"
    )
    cli.warn(result_directory.shortcomings(run.path, score))
    cli.wrote(f"{run.path}: oof.parquet, score.json, a directory for each fold", cli.command("predict", run.path))


if __name__ == "__main__":
    cli.run(main)
