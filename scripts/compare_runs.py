"""Compare runs by their out-of-fold predictions: scores, log loss by label, and intervals of the differences.

    python scripts/compare_runs.py runs/baseline runs/gold runs/blend
    python scripts/compare_runs.py runs/* --html runs.html

Prints a row for each run, the best first: its weighted log loss, the difference from the first named run's (negative
is better), the kind of run, and the log loss of each label. The intervals are of 95 %, by bootstrap over patients; all
runs are scored on the same resamples.

The runs on the folds that most of them share are compared. Every other run is listed with its own score and the reason:
other folds, an unfinished training, a damaged file.

More: docs/better_results.md
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a directory of runs/, of a blend too")
    parser.add_argument("--folds", type=Path, help="the file of folds (default: those that most runs share)")
    parser.add_argument("--out", type=Path, help="write the table as CSV too, with standard errors")
    parser.add_argument("--html", type=Path, help="write the tables as a page too")
    arguments = parser.parse_args(argv)

    import pandas as pd

    from ich.competition import metrics
    from ich.competition.labels import LABELS
    from ich.files import check_own, replacing
    from ich.results import overview, result_directory

    for path, marker in ((arguments.out, "run,weighted_log_loss,"), (arguments.html, "<title>Runs</title>")):
        if path:
            check_own(path, marker)
    listing = overview.overview(arguments.runs, arguments.folds)
    floor = metrics.prevalence_log_loss(listing.results.table[list(LABELS)].to_numpy())
    patients = listing.results.table["PatientID"].nunique()
    tables = overview.as_text(listing)
    summary = (
        f"{len(listing.results.table):,} slices of {patients:,} patients; the prevalence baseline scores {floor:.4f};"
        f" differences are from {next(iter(listing.results.oof))}"
    )
    for title, table in tables.items():
        reasons = table.get("reason", pd.Series(dtype=str))  # too long for a column
        print(f"{title}\n{table.drop(columns='reason', errors='ignore').to_string()}")
        print(*(f"  {name}: {reason}" for name, reason in reasons.items()), sep="\n")
    print(summary)
    warnings = [
        warning
        for name, loss in listing.compared["weighted_log_loss"].items()
        for warning in result_directory.shortcomings(
            name, result_directory.score_file(Path(name)) | {"weighted_log_loss": loss, "of_prevalence": floor}
        )
    ]
    cli.warn(warnings)
    if arguments.out:
        with replacing(arguments.out) as temporary:
            pd.concat([listing.compared, listing.others]).to_csv(temporary)
    if arguments.html:
        from ich.report import runs_page

        runs_page.write(arguments.html, tables, summary, warnings)
    written = [str(path) for path in (arguments.out, arguments.html) if path]
    if written:
        cli.wrote(", ".join(written))


if __name__ == "__main__":
    cli.run(main)
