"""Write the report of a run, a sequence stage or a blend: one HTML page, to be opened from disk.

    python scripts/report.py runs/baseline

Writes RUN/report.html: the out-of-fold score by label, fold and kind of scan, curves, the worst and the surest slices
with Grad-CAM, the audit of the data, and how it was made. What the directory lacks, the page says so in its place.
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("run", type=Path, help="a directory of runs/")
    parser.add_argument("--folds", type=Path, help="the file of folds (default: the run's)")
    arguments = parser.parse_args(argv)

    from ich.report import report

    print(f"report: {report.write_report(arguments.run, arguments.folds)}")


if __name__ == "__main__":
    cli.run(main)
