"""Write phantom head scans as an archive laid out like the competition's, to try every stage without its images.

    python scripts/make_demo_data.py data/demo/rsna-intracranial-hemorrhage-detection.zip --bleed-factor 4

About 1,500 slices of 512 x 512 in a minute on two cores: 40 train and 8 test patients. Beside the zip a .json file
records the settings, the share of slices with each label, and which files have which of the archive's oddities.
The same command again does nothing.

More: docs/architecture.md
"""

import json
import os
from pathlib import Path

from ich.cli import command, parser, run, wrote
from ich.errors import IchError
from ich.files import replacing


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("archive", type=Path, help="the zip to write")
    options.add_argument("--patients", type=int, default=40, help="in the train set (default: %(default)s)")
    options.add_argument("--test-patients", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    options.add_argument(
        "--bleed-factor",
        type=float,
        default=4.0,
        help="how many times as many bleeds as in the competition; of epidural ones its square (default: %(default)s)",
    )
    options.add_argument("--size", type=int, default=512, help="rows and columns of a slice (default: %(default)s)")
    options.add_argument("--min-slices", type=int, default=20, help="in a series (default: %(default)s)")
    options.add_argument("--max-slices", type=int, default=40, help="in a series (default: %(default)s)")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (default: all cores)")
    options.add_argument("--force", action="store_true", help="replace an archive made with other settings")
    arguments = options.parse_args(argv)

    settings = vars(arguments).copy()
    path, jobs, force = (settings.pop(name) for name in ("archive", "jobs", "force"))
    record = path.with_suffix(".json")
    if record.exists() and not _settings_in(record):
        raise IchError(f"{record} is there, and not this script's, which would write it; name another file")
    if path.exists() and not force:
        found = _settings_in(record)
        if found == settings:
            print(f"{path} was made with these settings already; nothing to do")
            wrote(f"{path}, {record}", _next(path))
            return
        different = ", ".join(f"{name} {found.get(name)}, not {settings[name]}" for name in _different(found, settings))
        raise IchError(
            f"{path} is there, made with {different or 'unknown settings'}; name another file, or add --force"
        )

    from ich.synthetic import draw_plan, write_archive  # only now: --help answers without SciPy, OpenCV and pydicom

    draw_plan(**settings)  # refuses what makes no scans, before anything is touched
    record.unlink(missing_ok=True)  # a record never speaks of another archive than the one beside it
    summary = write_archive(path, jobs=jobs, progress=True, **settings)
    content = {
        "settings": settings,
        "slices": summary.slices,
        "prevalence": {label: round(share, 4) for label, share in summary.prevalence.items()},
        "oddities": {name: [Path(member).stem for member in members] for name, members in summary.oddities.items()},
    }
    with replacing(record) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{summary.slices['train']} train and {summary.slices['test']} test slices")
    print("share of train slices: " + ", ".join(f"{label} {share:.1%}" for label, share in summary.prevalence.items()))
    print("oddities, in files: " + ", ".join(f"{name} {len(members)}" for name, members in summary.oddities.items()))
    wrote(f"{path}, {record}", _next(path))


def _next(path: Path) -> str:
    """The command that converts the archive; one of its slices is cut, as in the competition."""
    return command("preprocess", "configs/demo.yaml", "--max-failures", 1, overrides=[f"data.sources={path}"])


def _settings_in(record: Path) -> dict:
    """The settings that an archive was made with, as far as the file beside it tells."""
    try:
        return json.loads(record.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _different(found: dict, settings: dict) -> list[str]:
    return [name for name in settings if found and found.get(name) != settings[name]]


if __name__ == "__main__":
    run(main)
