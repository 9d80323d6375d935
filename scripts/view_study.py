"""Draw a scan as a montage: its slices in order, with labels and predictions where there are some.

    python scripts/view_study.py configs/baseline.yaml ID_63eb1e259 --out scan.png
    python scripts/view_study.py runs/baseline ID_63eb1e259 --window subdural

The first shows the images of a config with the labels of its folds; the second those of a result directory (a run, a
blend) with its predictions too: out-of-fold ones of train slices, the test set's of test slices. The id is a
StudyInstanceUID, a SeriesInstanceUID or that of a slice. A slice that has a label is captioned in orange.

More: docs/competition.md
"""

from pathlib import Path

from ich import cli
from ich.errors import IchError

_FORMATS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".pdf", ".svg")  # Matplotlib's


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("where", type=Path, metavar="CONFIG_OR_RUN", help="a YAML file, or a directory of runs/")
    parser.add_argument("study", help="the id of a study, a series or a slice")
    parser.add_argument("--window", help="of the images' windows by name (default: the first)")
    parser.add_argument("--out", type=Path, default=Path("study.png"), help="the picture to write (default: study.png)")
    arguments = parser.parse_args(argv)
    if arguments.out.suffix.lower() not in _FORMATS or arguments.out.is_dir():
        raise IchError(f"{arguments.out} is no name of a picture; name a file ending in {', '.join(_FORMATS)}")

    import pandas as pd

    from ich.competition import folds
    from ich.competition.labels import LABELS
    from ich.images import convert, slice_table
    from ich.report import pictures
    from ich.results import compare
    from ich.results.predictions import read_predictions

    images, folds_path = compare.data_of(arguments.where)
    scans = pictures.find_scans(slice_table.read_table(images / "slices.parquet"), arguments.study)
    labels = folds.read_folds(folds_path)[list(LABELS)] if folds_path.exists() else None
    found = [arguments.where / name for name in ("oof.parquet", "predictions_test.parquet")]
    found = [read_predictions(path) for path in found if path.exists()]
    predictions = pd.concat(found) if found else None
    figure = pictures.montage(images, scans, convert.read_settings(images), arguments.window, labels, predictions)
    pictures.save(figure, arguments.out)
    cli.wrote(f"{arguments.out}: {len(scans)} slices")


if __name__ == "__main__":
    cli.run(main)
