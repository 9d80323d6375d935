"""Draw a slice's life: from the archive through windows, batch and prediction to its rows of the submission.

    python scripts/draw_life.py runs/demo --out docs/slice_life.png

Follows a test slice of a run that was predicted: the one whose kind of bleeding the run is surest of, or the one named.
Reads the slice from the archive, so that data.sources of the run's config must be there. README.md's picture is drawn
so, from the demo's simulated scans.

More: docs/architecture.md
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    cli.add_run(parser, "draw_life")
    parser.add_argument("--slice", metavar="ID", help="a slice of the test set (default: the surest)")
    parser.add_argument("--label", help="that Grad-CAM is of (default: the slice's likeliest kind of bleeding)")
    parser.add_argument("--out", type=Path, default=Path("slice_life.png"), help="(default: %(default)s)")
    parser.add_argument("--dpi", type=int, default=180, help="100 makes it 900 pixels wide (default: %(default)s)")
    arguments = parser.parse_args(argv)

    from ich.startup import import_keras

    import_keras()

    from ich.report import slice_life
    from ich.training.run_directory import Run

    followed = slice_life.follow(Run.open(arguments.run, arguments.overrides), arguments.slice, arguments.label)
    slice_life.save(slice_life.draw(followed, arguments.dpi), arguments.out)
    print(f"{followed.id}, {followed.label} {followed.probabilities[followed.label]:.2f}")
    cli.wrote(str(arguments.out))


if __name__ == "__main__":
    cli.run(main)
