"""Convert DICOM slices to windowed PNGs and write the slice table.

    python scripts/preprocess.py configs/baseline.yaml

Reads the folders and zips of data.sources where they lie, writes data.images: a PNG a slice under train/ and test/, and
slices.parquet with a row a slice, read or not. Stopped and started again, it does what is left.
"""

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    arguments = parser.parse_args(argv)

    from ich import config, convert, runs

    settings = config.load(arguments.config, arguments.overrides)
    table = convert.convert(
        settings.data.sources,
        settings.data.images,
        runs.settings(settings),
        split=settings.data.split,
        jobs=settings.machine.jobs,
    )
    print(convert.summary(table))
    print(f"images and slice table: {settings.data.images}")


if __name__ == "__main__":
    cli.run(main)
