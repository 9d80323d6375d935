"""Write phantom head scans as an archive laid out like the competition's, to try every stage without its images.

    python scripts/make_demo_data.py data/demo/rsna-intracranial-hemorrhage-detection.zip --bleed-factor 4

About 1,500 slices of 512 x 512 in a minute on two cores: 40 train and 8 test patients. A .json file beside the zip
records the settings, the share of slices with each label, and the files with each of the real archive's oddities.
Rerunning the same command does nothing.

More: docs/architecture.md
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ich import folders
from ich.cli import command, parser, run, wrote
from ich.errors import IchError
from ich.files import write_json

if TYPE_CHECKING:
    from ich.synthetic.archive import Summary


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("archive", type=Path, help="the zip to write")
    options.add_argument("--patients", type=int, default=40, help="in the train set (default: %(default)s)")
    options.add_argument("--test-patients", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options.add_argument(
        "--bleed-factor",
        type=float,
        help="factor on the competition's rate of bleeds; its square on epidural ones (default: 4, or 1 with --hard)",
    )
    options.add_argument(
        "--hard",
        action="store_true",
        help="as hard to read as real scans: faint and isodense bleeds, calcifications and scars that look like bleeds,"
        " partial volume, beam hardening, motion, more noise",
    )
    options.add_argument("--size", type=int, default=512, help="rows and columns of a slice (default: %(default)s)")
    options.add_argument("--min-slices", type=int, default=20, help="in a series (default: %(default)s)")
    options.add_argument("--max-slices", type=int, default=40, help="in a series (default: %(default)s)")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options.add_argument("--force", action="store_true", help="replace an archive made with other settings")
    arguments = options.parse_args(argv)

    if arguments.bleed_factor is None:
        arguments.bleed_factor = 1.0 if arguments.hard else 4.0
    settings = vars(arguments).copy()
    path, jobs, force = (settings.pop(name) for name in ("archive", "jobs", "force"))
    if path.suffix != ".zip" or path.is_dir():
        raise IchError(
            f"{path} is {'a directory' if path.is_dir() else 'no name of a zip'}; name a file ending in .zip"
        )
    if file := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
        raise IchError(f"{file} is a file, expected a directory; name an archive in another")
    record = path.with_suffix(".json")
    before = _settings_in(record)
    if record.exists() and before is None:
        raise IchError(f"{record} is there, and not this script's, which would write it; name another file")
    if path.exists() and before is None:
        raise IchError(f"{path} is there without {record}, which this script writes beside it; name another file")
    # One of its slices is truncated, as in the competition.
    following = command("preprocess", "configs/demo.yaml", "--max-failures", 1, overrides=[f"data.sources={path}"])
    if path.exists() and not force and before != {_UNFINISHED: settings}:
        if before == settings:
            print(f"{path} was made with these settings already; nothing to do")
            wrote(f"{path}, {record}", following)
            return
        known = before or {}
        differing = [name for name in settings if name in known and known[name] != settings[name]]
        changes = ", ".join(f"{name} {known[name]}, not {settings[name]}" for name in differing)
        raise IchError(f"{path} is there, made with {changes or 'unknown settings'}; name another file, or add --force")

    # Imported only now: --help answers without SciPy, OpenCV and pydicom.
    from ich.synthetic.archive import write_archive
    from ich.synthetic.plan import draw_plan

    plan = draw_plan(**settings)
    with folders.locked(path.parent, name=path.stem):
        # A record never describes another archive than the one beside it.
        write_json(record, {_UNFINISHED: settings})
        summary = write_archive(path, plan, jobs, progress=True)
        write_json(record, _content(settings, summary))
    print(f"{summary.slices['train']} train and {summary.slices['test']} test slices")
    print("share of train slices: " + ", ".join(f"{label} {share:.1%}" for label, share in summary.prevalence.items()))
    print("oddities, in files: " + ", ".join(f"{name} {len(members)}" for name, members in summary.oddities.items()))
    wrote(f"{path}, {record}", following)


_RECORD = {"settings", "slices", "prevalence", "oddities"}
_UNFINISHED = "unfinished"  # the key of the settings in a record while its archive is written
_BEFORE_HARD = {"hard": False}  # settings that a record of a version without --hard lacks


def _content(settings: dict, summary: "Summary") -> dict:
    return {
        "settings": settings,
        "slices": summary.slices,
        "prevalence": {label: round(share, 4) for label, share in summary.prevalence.items()},
        "oddities": {name: [Path(member).stem for member in members] for name, members in summary.oddities.items()},
    }


def _settings_in(record: Path) -> dict | None:
    """Read an archive's settings from its record; of an unfinished one, under that key; None if it is no record."""
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        if content.keys() == {_UNFINISHED}:
            return {_UNFINISHED: _BEFORE_HARD | content[_UNFINISHED]}
        return _BEFORE_HARD | content["settings"] if content.keys() == _RECORD else None
    except (OSError, ValueError, AttributeError, TypeError):
        return None


if __name__ == "__main__":
    run(main)
