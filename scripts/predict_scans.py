"""Predict anybody's head CT scans by a trained result or an exported model.

    python scripts/predict_scans.py runs/gold /data/export --out predictions/export

Reads folders, zips and files of DICOM (or NIfTI) by their content, whatever their names, and chooses the series to
read. It needs none of the training's data. Writes into OUT:

    slices.csv, scans.csv        the probabilities of each slice, and the highest of each scan
    series.csv                   every series and file, with its status
    index.html, scans/*.html     pages to look through the scans
    predictions.json             provenance: model, sources, options

Rerun the same command to resume. The exit status is 3 if something could not be read, or no scan was
predicted.

For research use only: not a medical device.

More: docs/own-scans.md
"""

import sys
from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("result", type=Path, help="a directory of runs/, or a model of scripts/export_model.py")
    parser.add_argument("sources", type=Path, nargs="+", metavar="SOURCE", help="a folder, a zip or a file")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, such as predictions/export")
    parser.add_argument(
        "--all-series",
        action="store_true",
        help="read also series of sharper kernels at the same positions, and those of fewer than five slices",
    )
    parser.add_argument("--no-slabs", action="store_true", help="do not average slices thinner than the training's")
    parser.add_argument("--no-pages", action="store_true", help="write no pages")
    parser.add_argument("--patient-id", action="store_true", help="write PatientID; names are never read")
    parser.add_argument(
        "--hash-ids", action="store_true", help="replace identifiers by hashes; leave file names and descriptions out"
    )
    arguments = parser.parse_args(argv)

    from ich.startup import import_keras

    import_keras()

    from ich.own_scans import predict
    from ich.own_scans.model_spec import read_model
    from ich.own_scans.options import Options
    from ich.own_scans.reasons import REASONS

    options = Options(
        slabs=not arguments.no_slabs,
        all_series=arguments.all_series,
        patient_id=arguments.patient_id,
        hash_ids=arguments.hash_ids,
        pages=not arguments.no_pages,
    )
    summary = predict.predict_scans(read_model(arguments.result), arguments.sources, arguments.out, options)
    print(f"{summary.scans:,} scans of {summary.slices:,} slices predicted")
    for reason, count in sorted(summary.skipped.items()):
        print(f"{count:,} series not read: {REASONS[reason]}")
    for reason, count in sorted(summary.others.items()):
        print(f"{count:,} {'file' if count == 1 else 'files'} of no series: {REASONS[reason]}")
    pages = ", index.html and a page a scan" if options.pages else ""
    cli.wrote(
        f"{arguments.out}: slices.csv, scans.csv, series.csv{pages}",
        *([f"open {arguments.out}/index.html in a browser"] if options.pages else []),
        cli.command("validate_scans", arguments.out, "LABELS.csv"),
    )
    if summary.unread:
        cli.warn([f"{summary.unread:,} files could not be read; {arguments.out}/series.csv says why"])
    if not summary.scans:
        cli.warn([f"no scan was predicted of {' '.join(map(str, arguments.sources))}; is it the right place?"])
    if summary.unread or not summary.scans:
        sys.exit(3)


if __name__ == "__main__":
    cli.run(main)
