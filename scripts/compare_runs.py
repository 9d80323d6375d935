"""Set runs side by side by their out-of-fold predictions: score, labels, and how sure their differences are.

    python scripts/compare_runs.py runs/baseline runs/gold runs/blend

Prints a row a run with its weighted log loss, what it differs from the first run's (negative is better) and the log
loss of each label. Intervals are of 95 %, by bootstrap over patients; all runs are scored on the same resampled ones.

More: docs/better_results.md
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a directory of runs/, of a blend too")
    parser.add_argument("--folds", type=Path, help="the file of folds (default: the first run's)")
    parser.add_argument("--out", type=Path, help="write the table as CSV too, with standard errors")
    arguments = parser.parse_args(argv)

    from ich.competition import metrics
    from ich.competition.labels import LABELS
    from ich.files import replacing
    from ich.results import compare, result_directory

    labels = list(LABELS)
    found = compare.read_results(arguments.runs, arguments.folds)
    table = compare.compare(found.table, found.oof, baseline=str(arguments.runs[0]))
    if arguments.out:
        with replacing(arguments.out) as temporary:
            table.to_csv(temporary)
    shown = table[["weighted_log_loss"]].map("{:.4f}".format)
    shown["interval"] = [f"{row.low:.4f} to {row.high:.4f}" for row in table.itertuples()]
    shown["difference"] = table["difference"].map("{:+.4f}".format)
    shown["its interval"] = [f"{row.difference_low:+.4f} to {row.difference_high:+.4f}" for row in table.itertuples()]
    shown.iloc[0, -2:] = ""  # from itself
    shown[labels] = table[labels].map("{:.4f}".format)
    print(shown.rename(columns={"weighted_log_loss": "log loss"}).rename_axis(None).to_string())
    floor = metrics.prevalence_log_loss(found.table[labels].to_numpy())
    print(
        f"{len(found.table):,} slices of {found.table['PatientID'].nunique():,} patients; each label's prevalence alone"
        f" scores {floor:.4f}"
    )
    if arguments.out:
        print(f"table: {arguments.out}")
    for path in arguments.runs:
        score = {"weighted_log_loss": table.at[str(path), "weighted_log_loss"], "of_prevalence": floor}
        cli.warn(result_directory.shortcomings(path, result_directory.score_file(path) | score))


if __name__ == "__main__":
    cli.run(main)
