"""Export a trained result as a model that predict_scans.py runs without the training's data.

    python scripts/export_model.py runs/blend --out models/ich-blend
    python scripts/predict_scans.py models/ich-blend /data/export --out predictions/export

RESULT is a run, a second stage or a blend. Writes into OUT:

    <part>/fold<k>/   the models; with --onnx, those of runs in ONNX too
    ich-model.json    how the models are combined, thresholds, the SHA-256 of each file
    README.md         a model card: training, out-of-fold scores, limits, license of the data

The export holds no identifiers, labels, folds or predictions of the training. It replaces OUT if that is an export of
the same result.

More: docs/own-scans.md
"""

from pathlib import Path

from ich import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("result", type=Path, help="a directory of runs/")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, such as models/ich-blend")
    parser.add_argument("--zip", action="store_true", help="write OUT.zip too, to send it; unpack it to use it")
    parser.add_argument(
        "--onnx", action="store_true", help="write ONNX files too, checked against Keras: pip install 'ich[onnx]'"
    )
    arguments = parser.parse_args(argv)

    from ich.startup import import_keras

    import_keras()

    from ich.own_scans import export

    spec = export.export_model(arguments.result, arguments.out, arguments.onnx)
    zipped = f", {export.write_zip(arguments.out)}" if arguments.zip else ""
    print(f"{spec.result}: {', '.join(f'{name} ({part.kind})' for name, part in spec.parts.items())}")
    cli.wrote(
        f"{arguments.out}{zipped}", f"python scripts/predict_scans.py {arguments.out} SCANS --out predictions/scans"
    )


if __name__ == "__main__":
    cli.run(main)
