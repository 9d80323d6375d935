"""Train the second stage, which reads a run's predictions scan by scan and improves them.

    python scripts/train_sequence.py runs/baseline

Writes runs/<run>-sequence, a run like every other: oof.parquet, score.json, each fold's models (model.keras,
boosting.npz, linear.json), and the test set's predictions if the first stage has some (scripts/predict.py). Of several
runs with the same folds it takes the mean of their logits. Rerun the same command to resume; after new test predictions
of the first stage the trained models predict the test set again.

Its network can read embeddings too, after scripts/extract_features.py RUN --embeddings:

    python scripts/train_sequence.py runs/baseline --name baseline-embeddings \\
        --set sequence.features=embeddings --set sequence.shuffle_kinds=0

Each fold's network then trains on that fold's model's features of the slices that the model was trained on, which are
better than those of new patients; the out-of-fold score has no leakage, as neither has seen the fold's patients. See
ich.second_stage.inputs. The other kinds of a blend read out-of-fold logits in any case.

It also reads a table of scores in place of runs, without images:

    python scripts/train_sequence.py --table scores.csv.gz --name stacked

with a row for each slice: SOPInstanceUID, PatientID, SeriesInstanceUID, z in mm, the six labels and their logits
(score_epidural, …). The section folds divides its patients into folds, which are written into the run.

More: docs/better_results.md
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="directories of runs/, of the same folds")
    parser.add_argument("--table", type=Path, help="slices with scores, CSV or Parquet, instead of runs")
    parser.add_argument("--name", help="of the new run (default: <first run>-sequence, or the table's name)")
    cli.add_overrides(parser, "train_sequence", "the first run's config, or of the defaults beside a table")
    arguments = parser.parse_args(argv)
    if bool(arguments.runs) == bool(arguments.table):
        parser.error("give one run or more, or a table")

    if arguments.table:
        cli.refuse(
            arguments.overrides, ["data"], "with --table, which needs no images and writes its folds into the run"
        )
    else:
        cli.refuse(arguments.overrides, ["folds"], "without --table: the second stage keeps the folds of the runs")

    from ich.results import commands, result_directory
    from ich.startup import import_keras
    from ich.training import run_directory

    import_keras()

    from ich.second_stage import inputs, train

    if arguments.table:
        stage = inputs.inputs_from_table(arguments.table, arguments.name, arguments.overrides)
    else:
        stage = inputs.inputs_from_runs(arguments.runs, arguments.name, arguments.overrides)
    cli.warn_of_unused(stage.config.unused, "train_sequence")
    files = ("oof.parquet", "predictions_test.parquet")
    made_of = commands.read(*(path for path in stage.sources if path.is_dir()))
    work = commands.Work(run_directory.RUNS / stage.config.name, *files, made_of=made_of)
    run, facts = train.train(stage)
    work.done("train_sequence", argv)
    before, after = facts["of_first_stage"], facts["weighted_log_loss"]
    print(f"first stage     {before:.4f}")
    for kind, loss in facts["of_kinds"].items():
        print(f"{kind:<16}{loss:.4f}")
    print(f"out-of-fold weighted log loss: {after:.4f} ({after / before:.2f} of the first stage's)")
    cli.warn(result_directory.shortcomings(run.path, facts))
    if arguments.table:
        cli.wrote(f"{run.path}: oof.parquet, score.json", cli.command("report", run.path))
    elif run.predictions_path.exists():
        results = [*arguments.runs, run.path]
        cli.wrote(f"{run.path}: {', '.join(files)}, score.json", cli.command("make_submission", *results))
    else:
        cli.wrote(f"{run.path}: oof.parquet, score.json", cli.command("predict", arguments.runs[0]))


if __name__ == "__main__":
    cli.run(main)
