"""The demo with several seeds: how far below the prevalence's score does its model get, and how long does it take?

    python benchmarks/bench_demo.py --seeds 0 1 2 3

Each seed makes other patients, folds and first weights, and goes through every stage of `make demo` in a folder of its
own. Prints a table and, as the last line, JSON: `worst_ratio` is the largest out-of-fold weighted log loss as a share
of that of predicting each label's prevalence.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ich.config import load

ROOT = Path(__file__).resolve().parents[1]


def demo(seed: int, folder: Path) -> dict:
    archive = folder / "rsna-intracranial-hemorrhage-detection.zip"
    values = {
        "name": f"demo-{seed}",
        "data.sources": archive,
        "data.images": folder / "images",
        "folds.seed": seed,
        "train.seed": seed,
    }
    config = folder / "demo.yaml"
    overrides = [f"{key}={value}" for key, value in values.items()]
    config.write_text(load(ROOT / "configs" / "demo.yaml", overrides).resolved())
    run = folder / "runs" / f"demo-{seed}"
    stages = {
        "make_demo_data": [archive, "--seed", seed],
        "preprocess": [config, "--max-failures", 1],
        "make_folds": [config],
        "train_kfold": [config],
        "predict": [run],
        "make_submission": [run],
    }
    seconds = {}
    for stage, arguments in stages.items():
        start = time.perf_counter()
        command = [sys.executable, ROOT / "scripts" / f"{stage}.py", *arguments]
        subprocess.run(list(map(str, command)), cwd=folder, check=True, stdout=subprocess.DEVNULL)
        seconds[stage] = time.perf_counter() - start
    score = json.loads((run / "score.json").read_text())
    return {"ours": score["weighted_log_loss"], "prevalence": score["of_prevalence"], "seconds": seconds}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    seeds = parser.parse_args(argv).seeds

    ratios = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            result = demo(seed, Path(folder))
        ratios.append(result["ours"] / result["prevalence"])
        stages = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result["seconds"].items())
        print(
            f"seed {seed}: {result['ours']:.4f} / {result['prevalence']:.4f} = {ratios[-1]:.3f}   ({stages})",
            flush=True,
        )
    print(json.dumps({"worst_ratio": round(max(ratios), 4), "ratios": [round(r, 4) for r in ratios], "seeds": seeds}))


if __name__ == "__main__":
    main()
