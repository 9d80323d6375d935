"""Pack runs as a Kaggle data set, with which notebooks/kaggle_inference.ipynb predicts without network.

    python scripts/pack_for_kaggle.py runs/baseline --id jane/ich-baseline --out kaggle/baseline
    kaggle datasets create -p kaggle/baseline --dir-mode zip --keep-tabular

RUN is a run, a second stage or a blend. Writes into OUT each RUN as export_model.py exports it, the source code, the
wheels that Kaggle's image lacks, and the version of Keras that wrote the models (an older one cannot read them), but
none of the competition's data. Rerun the same command to resume; with other runs, it replaces the models in OUT.

The notebook submits the last run named, unless RESULT is set.

More: docs/kaggle.md
"""

import shlex
from pathlib import Path

from ich import cli

HAVE = (
    "tensorflow,numpy,pandas,pydicom,opencv-python-headless,scikit-learn,threadpoolctl,scipy,matplotlib,"
    "albumentations,joblib,packaging,tqdm,PyYAML,pydantic,Jinja2,pyarrow,pillow"
)


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a directory of runs/")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--id", default="", help="OWNER/SLUG of the data set on Kaggle")
    parser.add_argument("--title", help="title of the data set, 6 to 50 characters (default: the slug)")
    parser.add_argument("--license", "--licence", default="other", help="license, as Kaggle names it (default: other)")
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use instead of pip's index")
    parser.add_argument(
        "--python", default="3.11,3.12,3.13", help="the Pythons that Kaggle's image may have (default: %(default)s)"
    )
    parser.add_argument(
        "--have", default=HAVE, help=f"packages of requirements.txt that Kaggle's image has (default: {HAVE})"
    )
    parser.add_argument(
        "--lack",
        default="",
        help="packages that it lacks, or has in an unsuitable version: matplotlib,albucore==0.0.24",
    )
    arguments = parser.parse_args(argv)

    from ich.startup import import_keras

    import_keras()

    from ich.errors import IchError, not_there
    from ich.kaggle import packing, wheels

    source = arguments.wheels
    if source and not source.is_dir():
        problem = f"{source} is a file" if source.exists() else not_there(source)
        raise IchError(f"--wheels: {problem}; expected a folder of wheels, or leave it out to ask pip's index")

    root, out = Path(__file__).resolve().parents[1], arguments.out
    facts = packing.metadata(arguments.id, arguments.title, arguments.license)
    have, lack, pythons = (
        [part for part in text.split(",") if part] for text in (arguments.have, arguments.lack, arguments.python)
    )
    with packing.working_in(out, facts):
        keras = packing.export(arguments.runs, out)
        if "keras" not in have:
            lack.insert(0, f"keras=={keras}")
        lacking = wheels.lacking(wheels.read_requirements(root / "requirements.txt"), have, lack)
        fetched = wheels.fetch(lacking, pythons, out / "wheels", root / "constraints.txt", source)
        files = packing.write(root, arguments.runs, fetched, out)
    size = sum((out / name).stat().st_size for name in files)
    print(f"models: {', '.join(path.resolve().name for path in arguments.runs)}")
    print(f"wheels: {', '.join(path.name for path in fetched) or 'none'}")
    upload = ["kaggle", "datasets", "create", "-p", str(out), "--dir-mode", "zip", "--keep-tabular"]
    cli.wrote(f"{out}: {len(files):,} files, {size / 1e6:,.1f} MB", shlex.join(upload))


if __name__ == "__main__":
    cli.run(main)
