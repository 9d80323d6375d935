"""Does a blend of three different small models beat the best of the three on the demo's data?

    python benchmarks/bench_blend.py --seeds 0 1 2

Each seed makes other patients, folds and first weights. The models read the same images, three narrow windows of
slices cropped to the head, and differ in how: under light augmentation, under heavy, or with a slice's neighbours. The
blend is scored on predictions of each fold by weights that were fitted without it; the best model is picked in
hindsight, by its own score on the same slices.

Prints a table and, as the last line, JSON: `worst_ratio` is the largest weighted log loss of the blend as a share of
that of the best model; below 1 the blend wins with every seed. --folder keeps the runs, and goes on with those it has.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ich.config import load

ROOT = Path(__file__).resolve().parents[1]

# Of about equal strength: what is far behind the best has nothing to add to it.
MODELS = {
    "light": {},
    "heavy": {"train.augment": "heavy"},
    "neighbours": {"model.neighbours": "[-1, 0, 1]"},
}


def script(folder: Path, name: str, *arguments) -> None:
    command = [sys.executable, ROOT / "scripts" / f"{name}.py", *arguments]
    subprocess.run(list(map(str, command)), cwd=folder, check=True, stdout=subprocess.DEVNULL)


def blend(seed: int, folder: Path) -> dict:
    """Train the models of a seed and blend them; the blend's score.json."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / "rsna-intracranial-hemorrhage-detection.zip"
    script(folder, "make_demo_data", archive, "--seed", seed)
    for name, own in MODELS.items():
        values = {
            "name": name,
            "data.sources": archive,
            "data.folds": "folds.csv",
            "data.images": "images",
            "preprocess.crop": True,
            "preprocess.windows": "[stroke, brain, subdural]",
            "folds.seed": seed,
            "train.seed": seed,
            **own,
        }
        config = folder / f"{name}.yaml"
        overrides = [f"{key}={value}" for key, value in values.items()]
        config.write_text(load(ROOT / "configs" / "demo.yaml", overrides).resolved())
        script(folder, "preprocess", config, "--max-failures", 1)
        script(folder, "make_folds", config)
        script(folder, "train_kfold", config)
    script(folder, "blend", *(Path("runs") / name for name in MODELS), "--out", "runs/blend")
    return json.loads((folder / "runs" / "blend" / "score.json").read_text())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="keep the runs here (default: a temporary folder)")
    arguments = parser.parse_args(argv)

    ratios = []
    for seed in arguments.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            score = blend(seed, (arguments.folder or Path(temporary)).resolve() / f"seed-{seed}")
        ratios.append(score["weighted_log_loss"] / score["runs"][score["best_run"]])
        alone = ", ".join(
            f"{Path(run).name} {loss:.4f} (weight {score['weights']['any'][run]:.2f})"
            for run, loss in score["runs"].items()
        )
        print(
            f"seed {seed}: {alone}; blend {score['weighted_log_loss']:.4f}, gain {score['gain']:.4f} ±"
            f" {score['gain_standard_error']:.4f}, ratio {ratios[-1]:.3f}; prevalence {score['of_prevalence']:.4f}",
            flush=True,
        )
    print(
        json.dumps(
            {"worst_ratio": round(max(ratios), 4), "ratios": [round(r, 4) for r in ratios], "seeds": arguments.seeds}
        )
    )


if __name__ == "__main__":
    main()
