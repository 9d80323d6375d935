"""Draw a scan as a montage or write it as a page: its slices in order, with their labels and predictions.

    python scripts/view_study.py configs/baseline.yaml ID_63eb1e259 --out scan.png
    python scripts/view_study.py runs/baseline ID_63eb1e259 --window subdural
    python scripts/view_study.py runs/baseline ID_63eb1e259 --out scan.html --grad-cam

The first command shows the images of a config with the labels of its folds; the second those of a result directory (a
run, a blend), with its out-of-fold predictions of train slices or its predictions of test slices. The id is a
StudyInstanceUID, a SeriesInstanceUID or a SOPInstanceUID. A slice that has a label is captioned in orange.

With a name ending in .html, as in the third, the command writes one series as a page that opens in any browser without
network: slices to move through, windows, the probabilities along the scan. Its HU come from the DICOM files of
data.sources if they are there, else from the PNGs, and the page says from which.

No existing file is replaced, unless it is a page that this command wrote.

More: docs/competition.md
"""

import os
from functools import partial
from pathlib import Path

from ich import cli
from ich.errors import IchError
from ich.files import check_own

_FORMATS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf", ".svg")  # Matplotlib's


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("where", type=Path, metavar="CONFIG_OR_RUN", help="a YAML file, or a directory of runs/")
    parser.add_argument("study", help="the id of a study, a series or a slice")
    parser.add_argument("--window", help="window of a picture: one of the images' windows by name (default: the first)")
    parser.add_argument(
        "--out", type=Path, default=Path("study.png"), help="the picture or .html to write (default: study.png)"
    )
    parser.add_argument(
        "--grad-cam", action="store_true", help="add Grad-CAM to a page: of each slice and label (slow)"
    )
    arguments = parser.parse_args(argv)
    page = arguments.out.suffix.lower() == ".html" and not arguments.out.is_dir()
    if page and arguments.window:
        raise IchError("--window is of a picture; in a page, any window can be chosen")
    if arguments.grad_cam and not page:
        raise IchError("--grad-cam is of a page; name it by --out with an ending .html")
    if not page and (arguments.out.suffix.lower() not in _FORMATS or arguments.out.is_dir()):
        raise IchError(f"{arguments.out} is no name of a picture; name a file ending in {', '.join(_FORMATS)} or .html")
    if not page and os.path.lexists(arguments.out):
        raise IchError(f"{arguments.out} exists, and no existing picture is replaced; name another file, or remove it")

    import pandas as pd

    from ich.competition import folds
    from ich.competition.labels import LABELS
    from ich.images import convert, slice_table
    from ich.report import pictures, run_scan, scan_page
    from ich.results import compare
    from ich.results.predictions import read_predictions
    from ich.startup import import_keras

    if page:
        check_own(arguments.out, scan_page.MARKER)
    images, folds_path, sources = compare.data_of(arguments.where)
    scans = pictures.find_scans(slice_table.read_table(images / "slices.parquet"), arguments.study)
    folded = folds.read_folds(folds_path) if folds_path.exists() else None
    labels = None if folded is None else folded[list(LABELS)]
    paths = [arguments.where / name for name in ("oof.parquet", "predictions_test.parquet")]
    tables = [read_predictions(path) for path in paths if path.exists()]
    predictions = pd.concat(tables) if tables else None
    settings = convert.read_settings(images)
    if not page:
        figure = pictures.montage(images, scans, settings, arguments.window, labels, predictions)
        pictures.save(figure, arguments.out)
        cli.wrote(f"{arguments.out}: {len(scans)} slices")
        return
    heat = None
    if arguments.grad_cam:
        if folded is None or arguments.where.is_file():
            raise IchError(
                f"Grad-CAM takes a run and its folds; {arguments.where} is no run, or {folds_path} is missing"
            )
        import_keras()
        heat = partial(run_scan.grad_cam, arguments.where, folded)
    view = run_scan.view(images, scans, settings, run_scan.Sources(sources), labels, predictions, heat)
    scan_page.write_scan_page(view, arguments.out)
    cli.wrote(f"{arguments.out}: {len(view.ids)} slices", f"open it in a browser: {arguments.out.resolve().as_uri()}")


if __name__ == "__main__":
    cli.run(main)
