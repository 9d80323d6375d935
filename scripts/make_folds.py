"""Split the patients into folds, all six labels balanced, and audit the result.

    python scripts/make_folds.py configs/baseline.yaml

Reads the slice table of data.images and the label CSV (data.labels, or the one in data.sources), writes data.folds: a
row for each train slice with its patient, fold and labels, which every later stage reads. Also writes folds.png, a
chart of the balance.

More: docs/competition.md
"""

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "make_folds")
    arguments = parser.parse_args(argv)

    from ich import config, folders
    from ich.competition import folds, labels
    from ich.dicom import archive
    from ich.errors import IchError, name_some
    from ich.images import slice_table
    from ich.report import pictures
    from ich.results import commands
    from ich.training.run_data import read_slices

    settings = config.load(arguments.config, arguments.overrides)
    cli.warn_of_unused(settings.unused, "make_folds")
    if settings.data.labels:
        cli.refuse(arguments.overrides, ["data.sources"], f"beside data.labels={settings.data.labels}")
    table = read_slices(settings)
    data = settings.data
    frame, merged = labels.read_labels(data.labels or archive.open_table(data.sources, "_train.csv"))
    if merged:
        print(f"{merged:,} image(s) are listed more than once, with equal labels")

    train = table[table["split"] == "train"].set_index("SOPInstanceUID")
    for unmatched, problem in (
        (frame.index.difference(train.index), "label(s) without a slice"),
        (train.index.difference(frame.index), "slice(s) without a label"),
    ):
        if len(unmatched) and not settings.folds.allow_unmatched:
            raise IchError(
                f"{len(unmatched):,} {problem}: {name_some(unmatched)}; give the sources and the label file that"
                " belong together, or set folds.allow_unmatched=true to work with what both have"
            )
        if len(unmatched):
            print(f"left out: {len(unmatched):,} {problem}")

    usable = slice_table.readable(table, "train").join(frame, how="inner")
    if settings.folds.allow_unmatched:
        anonymous = usable.index[usable["PatientID"].isna()]
        usable = usable.drop(anonymous)
        if len(anonymous):
            print(f"left out: {len(anonymous):,} slice(s) without a PatientID")
    assigned = folds.make_folds(usable, n_folds=settings.folds.n, seed=settings.folds.seed)
    path = settings.data.folds_path
    with folders.locked(path.parent, wait=folders.SHORT):
        if not path.exists():
            work = commands.Work(data.images)
            folds.write_folds(path, assigned)
            work.done("make_folds", argv, wrote=path)
        elif not folds.read_folds(path).equals(assigned):
            raise IchError(f"{path} holds other folds than these; name another file in data.folds, or delete it")
        print(folds.audit(assigned))
        chart = path.with_suffix(".png")
        if not chart.exists() and pictures.save_if_possible(lambda: _chart(folds.audit(assigned).table), chart):
            print(f"label balance: {chart}")
    cli.wrote(str(path), cli.command("train_kfold", arguments.config, overrides=arguments.overrides))


def _chart(prevalence):
    from ich.report import figures  # here, as the folds are written without Matplotlib too

    return figures.label_balance(prevalence)


if __name__ == "__main__":
    cli.run(main)
