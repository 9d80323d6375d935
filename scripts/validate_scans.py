"""Score the predictions of somebody's scans against their labels: how good is the model at this hospital?

    python scripts/validate_scans.py predictions/cq500 reads.csv --format cq500
    python scripts/validate_scans.py predictions/ct-ich hemorrhage_diagnosis_raw_ct.csv --format ct-ich
    python scripts/validate_scans.py predictions/export labels.csv

PREDICTIONS is what predict_scans.py wrote. LABELS is CQ500's reads.csv, CT-ICH's table of slices, or any CSV with a
column SOPInstanceUID, SeriesInstanceUID or StudyInstanceUID and some of the six labels as 0 and 1.

Writes validation.html, a page to open from disk, and validation.json: for each label AUC, average precision,
sensitivity and specificity, log loss and calibration before and after recalibration, with intervals over patients,
beside the model's out-of-fold figures and published ones. Slices or scans without a label or a prediction are counted.

More: docs/own-scans.md
"""

from pathlib import Path

from ich import cli

_FORMATS = ("plain", "cq500", "ct-ich")


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("predictions", type=Path, metavar="PREDICTIONS", help="a folder that predict_scans.py wrote")
    parser.add_argument("labels", type=Path, metavar="LABELS", help="a CSV with labels of scans or slices")
    parser.add_argument("--format", choices=_FORMATS, default="plain", help="format of LABELS (default: plain)")
    parser.add_argument("--out", type=Path, help="the folder for the two files (default: PREDICTIONS)")
    arguments = parser.parse_args(argv)

    from ich import folders
    from ich.files import check_own, write_json
    from ich.own_scans import validate, validation_page

    out = arguments.out or arguments.predictions
    page, numbers = out / "validation.html", out / "validation.json"

    def check() -> None:
        check_own(page, validation_page.MARKER)
        check_own(numbers, '"validation_of"')

    check()
    validation = validate.validate(arguments.predictions, arguments.labels, arguments.format)
    with folders.locked(out, check, wait=folders.SHORT):
        write_json(numbers, validate.as_json(validation))
        validation_page.write(validation, page)
    print(validation_page.as_text(validation))
    print(*(f"note: {note}" for note in validation.notes), sep="\n")
    cli.warn(validation_page.counts(validation))
    cli.wrote(f"{page}, {numbers}", f"open it in a browser: {page.resolve().as_uri()}")


if __name__ == "__main__":
    cli.run(main)
