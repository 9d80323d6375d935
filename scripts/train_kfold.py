"""Train all folds of a run, one after the other, and score their out-of-fold predictions.

    python scripts/train_kfold.py configs/baseline.yaml

Writes runs/<name>: a directory a fold, oof.parquet and score.json. Folds that are finished are not trained again.
"""

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    arguments = parser.parse_args(argv)

    from ich import config, runs

    run = runs.Run.begin(config.load(arguments.config, arguments.overrides))
    todo = [k for k in range(run.config.folds.n) if k not in run.finished_folds()]
    if todo:
        from ich import training

        for k in todo:
            print(f"fold {k} of {run.config.folds.n}")
            training.train_fold(run, k)
    score = run.score()
    for label, loss in score["by_label"].items():
        print(f"  {label:<17}{loss:.4f}")
    print(
        f"out-of-fold weighted log loss: {score['weighted_log_loss']:.4f}"
        f" ({score['weighted_log_loss'] / score['of_prevalence']:.2f} of the prevalence's {score['of_prevalence']:.4f})"
    )
    print(f"run: {run.path}")


if __name__ == "__main__":
    cli.run(main)
