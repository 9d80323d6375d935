"""Predict the test set by all folds of a run, and in the same way the slices that each fold held out.

    python scripts/predict.py runs/baseline
    python scripts/predict.py runs/baseline --set 'predict.tta=[none, flip]' --set predict.mean=logit

Writes RUN/predictions_test.parquet, the mean over the folds and the TTA passes, and RUN/oof.parquet with
RUN/score.json, made in the same way. Rerun the same command to resume; finished predictions are kept. All settings are
the run's own, and the section predict keeps the values that were last set. The images can be moved (--set
data.images=…), and --out names another folder to write into: for a run that is read-only, or for images of other
slices, whose predictions would replace the run's.

A second stage (scripts/train_sequence.py) predicts from the current predictions of its first stage.

More: docs/competition.md
"""

from pathlib import Path

from ich import cli

_MADE = ("oof.parquet", "predictions_test.parquet")


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_run(parser, "predict")
    parser.add_argument("--out", type=Path, help="the folder to write into (default: the run)")
    arguments = parser.parse_args(argv)

    from ich.results import commands, result_directory
    from ich.startup import import_keras
    from ich.training.results_folder import with_results_in
    from ich.training.run_directory import Run

    run = Run.open(arguments.run, arguments.overrides, arguments.out)
    if "first_stage" in run.environment():
        if arguments.out:
            parser.error("--out is for runs that read images; copy a second stage")
        reason = "on a second stage, which reads predictions; set it for its first stage"
        cli.refuse(arguments.overrides, ["predict", "machine"], reason)

        import_keras()

        from ich.second_stage import inputs, train

        stage = inputs.inputs_from_second_stage(run)
        work = commands.Work(run.path, *_MADE, made_of=commands.read(*stage.sources))
        run, score = train.train(stage, run.path.parent)
        work.done("predict", argv)
        print(f"out-of-fold weighted log loss: {score['weighted_log_loss']:.4f}")
        cli.warn(result_directory.shortcomings(run.path, score))
        cli.wrote(
            f"{run.path}: {', '.join(_MADE)}, score.json", cli.command("make_submission", *stage.sources, run.path)
        )
        return
    target = with_results_in(run, arguments.out) if arguments.out else run
    if target is run:
        run.check_same_slices()

    import_keras()

    from ich.training import inference
    from ich.training.run_score import read_score

    section = run.config.predict
    before = result_directory.passes_of(target.path)
    dependent = result_directory.made_of(target.path)
    work = target.work(*_MADE)
    predictions = inference.predict_test(run, target)
    work.done("predict", argv)
    if before != {"tta": section.tta, "mean": section.mean}:
        cli.warn(f"{path} was made of the predictions that these replace ({before})" for path in dependent)
    score = read_score(target)
    origin = "" if cli.sets(arguments.overrides, "predict") else " (as the run has it; --set predict.… sets others)"
    print(f"passes: {', '.join(section.tta)}; mean of the folds' {section.mean}{origin}")
    print(
        f"out-of-fold weighted log loss: {score['weighted_log_loss']:.4f}"
        f" (one pass over the slices as they are: {score['plain_weighted_log_loss']:.4f})"
    )
    print(f"{len(predictions):,} slices of the test set predicted")
    cli.warn(result_directory.shortcomings(target.path, score))
    cli.wrote(
        f"{target.path}: {', '.join(_MADE)}, score.json",
        cli.command("make_submission", target.path),
        *([cli.command("train_sequence", target.path)] if target is run else []),
    )


if __name__ == "__main__":
    cli.run(main)
