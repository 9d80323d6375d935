"""Extract each fold's logits and embeddings of slices, for the second stage or your own models.

    python scripts/extract_features.py runs/baseline --embeddings
    python scripts/extract_features.py runs/baseline --embeddings --set 'predict.tta=[none, flip]'

Writes RUN/fold<k>/features/, in scan order: oof.parquet and test.parquet, the six logits that fold k's model predicts,
as the mean over the TTA passes, for the slices that the fold held out and for the test set. With --embeddings it also
writes oof.npy and test.npy, float16: the pooled features of the backbone, which the model's last layer reads; and
seen.parquet and seen.npy of the slices that the model was trained on, whose features are better than those of new
patients.

Embeddings of 1,280 numbers (EfficientNetV2) of the competition's 752,803 and 121,232 slices are 2.2 GB a fold, 11 GB
for five, and 1.6 GB more while a file is joined from its parts. The models predict 4.4 million slices a pass, three
times as many as for scripts/predict.py. Embeddings are not projected to fewer numbers: a projection would have to be
fitted for each fold, and scripts/train_sequence.py reads them from the disk.

Finished files are kept; rerun the same command to resume.

More: docs/better_results.md
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_run(parser, "extract_features")
    parser.add_argument("--embeddings", action="store_true", help="write embeddings too, also of the slices trained on")
    parser.add_argument("--out", type=Path, help="the folder to write into (default: the run)")
    arguments = parser.parse_args(argv)

    from ich import config
    from ich.results import result_directory
    from ich.startup import import_keras
    from ich.training.results_folder import with_results_in
    from ich.training.run_directory import Run

    kept = config.overrides_of("predict", result_directory.extracted_in(arguments.out or arguments.run))
    run = Run.open(arguments.run, [*kept, *arguments.overrides], arguments.out)
    target = with_results_in(run, arguments.out) if arguments.out else run
    if target is run:
        run.check_same_slices()

    import_keras()

    from ich.second_stage import embeddings

    work = target.work("fold*/features/*.parquet")
    written = embeddings.extract(run, arguments.embeddings, target)
    work.done("extract_features", argv)
    files = [file for path in written for file in (path, path.with_suffix(".npy")) if file.exists()]
    size = sum(file.stat().st_size for file in files) / 1e6
    origin = "" if cli.sets(arguments.overrides, "predict") else " (as before; --set predict.… sets others)"
    print(f"passes: {', '.join(run.config.predict.tta)}; mean of their {run.config.predict.mean}{origin}")
    options = ("--set", "sequence.features=embeddings", "--set", "sequence.shuffle_kinds=0")
    name = f"{target.path.resolve().name}-embeddings"
    cli.wrote(
        f"{target.path}/fold*/features: {len(files)} files of {run.config.folds.n} folds, {size:,.1f} MB",
        *([cli.command("train_sequence", target.path, "--name", name, *options)] if arguments.embeddings else []),
    )


if __name__ == "__main__":
    cli.run(main)
