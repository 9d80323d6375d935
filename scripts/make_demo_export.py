"""Write the scans of an archive as a PACS exports them, to try scripts/predict_scans.py on.

    python scripts/make_demo_export.py data/demo/rsna-intracranial-hemorrhage-detection.zip data/demo/export

Writes for each series JPEG Lossless slices under new identifiers and names without an extension, the same slices by a
sharp kernel, a localizer and a structured report; and a DICOMDIR. Rerunning the same command does nothing.

More: docs/own-scans.md
"""

from pathlib import Path

from ich.cli import parser, run, wrote
from ich.errors import IchError
from ich.files import write_json


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("archive", type=Path, help="a zip or folder laid out like the competition's")
    options.add_argument("out", type=Path, help="the folder to write")
    options.add_argument("--split", choices=("train", "test"), default="test", help="(default: %(default)s)")
    options.add_argument("--series", type=int, help="how many to take (default: all)")
    arguments = options.parse_args(argv)

    # Beside the folder, as an export holds nothing of ours.
    record = arguments.out.with_name(f"{arguments.out.name}.json")
    settings = {"archive": str(arguments.archive), "split": arguments.split, "series": arguments.series}
    following = (
        f"python scripts/predict_scans.py runs/demo-sequence {arguments.out} --out predictions/{arguments.out.name}"
    )
    if arguments.out.exists() and _settings_in(record) == settings:
        print(f"{arguments.out} was made with these settings already; nothing to do")
        wrote(f"{arguments.out}, {record}", following)
        return
    if record.exists() and _settings_in(record) is None:
        raise IchError(f"{record} is there, and not this script's, which would write it; name another folder")

    from ich.synthetic.pacs_export import write_export

    ids = write_export(arguments.archive, arguments.out, arguments.split, arguments.series)
    write_json(record, {"settings": settings, "ids": ids})
    print(f"{len(ids):,} slices exported, each with one by a sharp kernel")
    wrote(f"{arguments.out}, {record} (the competition's id of each new one)", following)


def _settings_in(record: Path) -> dict | None:
    """Return the settings of an export from its record; None if there is no record of this script."""
    import json

    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        return content["settings"] if content.keys() == {"settings", "ids"} else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


if __name__ == "__main__":
    run(main)
