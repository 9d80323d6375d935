"""Convert DICOM slices to windowed PNGs and write the slice table.

    python scripts/preprocess.py configs/baseline.yaml

Reads the folders and zips of data.sources where they lie, writes data.images: a PNG for each slice under train/ and
test/, and slices.parquet with a row for each slice, read or not. Rerun the same command to resume. contact_sheet.png
shows random slices, repaired ones, and those that could not be read.

A slice that cannot be read gets no PNG, and its row gives the reason. If there are more such slices than
--max-failures, the exit status is 3.

More: docs/competition.md
"""

import sys
from typing import Any

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_config(parser, "preprocess")
    parser.add_argument(
        "--max-failures", type=int, metavar="N", help="number of slices without a PNG to accept (default: 0)"
    )
    parser.add_argument("--verify", action="store_true", help="re-read all and compare each PNG with its source")
    arguments = parser.parse_args(argv)
    if arguments.verify and arguments.max_failures is not None:
        parser.error("--max-failures has no effect beside --verify, which converts nothing")
    allowed = arguments.max_failures or 0

    from ich import config
    from ich.errors import IchError
    from ich.images import convert
    from ich.images.render import Settings
    from ich.report import pictures
    from ich.results import commands

    settings = config.load(arguments.config, arguments.overrides)
    cli.warn_of_unused(settings.unused, "preprocess")
    data, machine = settings.data, settings.machine
    look = Settings.of(settings.preprocess)
    where = (data.sources, data.images, look)
    how: dict[str, Any] = {"split": data.split} | machine.model_dump(include={"jobs", "backend", "scheduler"})
    if arguments.verify:
        differing = convert.verify(*where, **how)
        for id, what in differing.items():
            print(f"{id}: {what}")
        if differing:
            raise IchError(
                f"{len(differing):,} slice(s) of {data.images} differ from their sources; delete their PNGs, and run"
                " the same command without --verify: what is missing is made again"
            )
        print(f"every image of {data.images} is what its source gives")
        return
    with convert.working_in(data.images, look):
        work = commands.Work(data.images, "slices.parquet")
        table = convert.convert(*where, **how)
        work.done("preprocess", argv)
        print(convert.summary(table))
        contact = data.images / "contact_sheet.png"
        stale = not contact.exists() or contact.stat().st_mtime < (data.images / "slices.parquet").stat().st_mtime
        if stale and pictures.save_if_possible(lambda: pictures.contact_sheet(data.images, table, look), contact):
            print(f"contact sheet: {contact}")
    failures = (table["status"] != "ok").sum()
    then = cli.command("make_folds", arguments.config, overrides=arguments.overrides)
    cli.wrote(f"{data.images}: the images and slices.parquet", *([then] if failures <= allowed else []))
    if failures > allowed:
        print(f"{failures:,} slice(s) have no image, --max-failures {allowed}", file=sys.stderr)
        sys.exit(3)


if __name__ == "__main__":
    cli.run(main)
