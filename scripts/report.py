"""Write the report of a run, a sequence stage or a blend: one HTML page, to be opened from disk.

    python scripts/report.py runs/baseline
    python scripts/report.py runs/baseline runs/baseline-sequence

Writes RUN/report.html of each: the out-of-fold score by label, fold and kind of scan, curves, the worst and the surest
slices with Grad-CAM, the audit of the data, and the provenance. The page names the files that the directory lacks. With
--pages, each scan of these slices gets a page in RUN/scans/, some 5 MB each.

More: docs/competition.md
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a directory of runs/")
    parser.add_argument("--folds", type=Path, help="the file of folds (default: each run's)")
    parser.add_argument("--pages", action="store_true", help="write the scans of the slices as pages, and link to them")
    arguments = parser.parse_args(argv)

    from ich.report import report
    from ich.startup import import_keras

    for run in arguments.runs:
        if any(run.glob("fold*/model.keras")):  # of which there is Grad-CAM
            import_keras()
        page = report.write_report(run, arguments.folds, arguments.pages)
        cli.wrote(str(page), f"open it in a browser: {page.resolve().as_uri()}")


if __name__ == "__main__":
    cli.run(main)
