"""Two ways to read a scan in the same training time: two stages, or one network trained end to end. Which is better?

    python benchmarks/bench_recipe.py --seeds 0 1 2

120 simulated patients at 128 × 128, as hard to read as real ones (make_demo_data --hard) and with as many bleeds;
three folds. A seed makes other folds, first weights and orders. The two-stage way, whose slice model trains for
--slice-epochs epochs, sets the training time of each seed; all others have as much, by the number of their epochs:

    two_stage               slice model; second stage on its out-of-fold predictions
    scan_model              scan model, that begins with a slice model of --start-epochs, whose time counts
    scan_plus_second_stage  the same, shorter by the second stage's time; second stage on its predictions
    blend                   second stage on that slice model, and that shorter scan model: weights fitted on other folds
    pseudo                  that slice model predicts the test set; another slice model learns from it too; second stage
    mix                     slice model with MixUp and CutMix; second stage

Times are computed, not clocked, from short trainings at the beginning: of one fold with 1 and with 3 epochs for each
kind of network, and of one second stage. The machine must be at rest for these alone (a line says when they are over):
what a training gives depends on its number of epochs, and not on what else runs. Validation, once at the end, counts;
the start of processes and the blend's fit do not. The table has each variant's time as a share of the two-stage way's,
below 1 by what is left of the last epoch.

Losses are out of fold, on all train slices. Errors are standard errors by bootstrap over patients, of the mean over the
seeds; the spread over seeds is beside it. A variant whose config keys this version does not have is shown as n/a, and
the JSON names the missing keys under `not_available`.

Each training is kept in --folder, under a name that has the digest of its config: the same command resumes, and other
settings (--slice, --scan, --second) train only what they change. The measured times are kept there, so that a folder
is of one machine.

Prints a line a training, a table and, as the last line, JSON: the losses; `scan_vs_two_stage` (at most 1.0 is aimed
at) and `best_vs_two_stage`, the smaller of scan_plus_second_stage's and blend's (at most 0.93), as mean ratios of the
seeds; `pseudo_gain` and `mix_gain`, by how much less the loss is than two_stage's.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from shutil import rmtree
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ich.config import Config, load
from ich.errors import IchError
from ich.files import write_json

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 3
VARIANTS = ("two_stage", "scan_model", "scan_plus_second_stage", "blend", "pseudo", "mix")

# What the sides differ in from configs/demo.yaml, as overrides.
SCAN = [
    "model.scan={slices: 16, kind: gru, units: 48, slice_loss: 0.5}",
    "model.freeze_batch_norm=true",  # a batch is four patients, whose statistics are not those of all
    "train.batch_size=4",
    "predict.batch_size=8",
    "train.learning_rate=1.0e-3",
]
SECOND = ["sequence.epochs=60"]  # 80 scans to learn from, where the demo has 30
MIX = ["train.mixup=0.2", "train.cutmix=1.0", "train.mix_share=0.5"]


class Result(NamedTuple):
    """The out-of-fold predictions of a variant and the computed seconds of all its training."""

    path: Path
    seconds: float


class Pace(NamedTuple):
    """Seconds that one fold takes: to start, and for each epoch."""

    start: float
    epoch: float

    def seconds(self, epochs: int) -> float:
        """Return the seconds of all folds."""
        return FOLDS * (self.start + epochs * self.epoch)

    def epochs(self, seconds: float) -> int:
        """Return how many epochs of all folds fit into so many seconds."""
        count = int((seconds / FOLDS - self.start) / self.epoch)
        if count < 1:
            raise IchError(
                f"no epoch of {self.epoch:.1f} s fits into {seconds:.0f} s for {FOLDS} folds, which start in"
                f" {self.start:.1f} s each; give the two-stage way more --slice-epochs"
            )
        return count


class Folder:
    """A folder of trainings on the same folds, each of which is named by the digest of its config."""

    def __init__(self, data: Path, name: str, seed: int):
        self.data, self.seed = data, seed
        self.path = data / name
        self.path.mkdir(exist_ok=True)
        if not (self.path / "folds.csv").exists():
            config = self.path / "folds.yaml"
            config.write_text(self.config("folds", [], 1).resolved())
            script(self.path, "make_folds", config)

    def config(self, name: str, overrides: list[str], epochs: int) -> Config:
        values = {
            "name": name,
            "data.sources": archive_in(self.data),
            "data.images": self.data / "images",
            "data.folds": self.path / "folds.csv",
            "folds.n": FOLDS,
            "folds.seed": self.seed,
            "train.seed": 1000 * self.seed,
            "train.epochs": epochs,
            "train.validate_every": epochs,
        }
        own = [f"{key}={value}" for key, value in values.items()]
        return load(ROOT / "configs" / "demo.yaml", [*own, *overrides])

    def train(self, name: str, overrides: list[str], epochs: int, folds: int = FOLDS) -> Path:
        """Train the first folds, unless that was done before; the path of the run."""
        name = f"{name}-{_digest(self.config(name, overrides, epochs).resolved())}"
        config, run = self.path / f"{name}.yaml", self.path / "runs" / name
        config.write_text(self.config(name, overrides, epochs).resolved())
        if folds < FOLDS:
            for fold in range(folds):
                if not (run / f"fold{fold}" / "oof.parquet").exists():
                    script(self.path, "train", config, "--fold", fold)
        elif not (run / "score.json").exists():
            script(self.path, "train_kfold", config)
        return run

    def second_stage(self, first: Path, overrides: list[str]) -> tuple[Path, float | None]:
        """Train the second stage on a run, unless that was done; its path, and the seconds that it took now.

        It is trained in this process, so that no start of Python is in its time.
        """
        from ich.second_stage import inputs, train

        name = f"{first.name}-second-{_digest(json.dumps(overrides))}"
        path = self.path / "runs" / name
        if (path / "score.json").exists():
            return path, None
        stage = inputs.inputs_from_runs([first], name, [f"sequence.seed={1000 * self.seed}", *overrides])
        start = time.perf_counter()
        with redirect_stdout(StringIO()):
            train.train(stage, path.parent)
        return path, time.perf_counter() - start


class Times:
    """Times of training on this machine, measured once and kept."""

    def __init__(self, data: Path):
        self.data, self.file = data, data / "times.json"

    def pace(self, overrides: list[str]) -> Pace:
        """Measure the first fold's time with 1 and with 3 epochs."""
        return Pace(*self._kept(json.dumps(overrides), lambda: self._measure_pace(overrides)))

    def second_stage(self, overrides: list[str]) -> float:
        """Measure the seconds of a second stage on a run of one epoch, whose quality is not in them."""
        return self._kept(json.dumps({"second": overrides}), lambda: self._measure_second(overrides))

    def _kept(self, key: str, measure: Callable[[], Any]) -> Any:
        known = _json(self.file) if self.file.exists() else {}
        if key not in known:
            known[key] = measure()
            write_json(self.file, known)
        return known[key]

    def _measure_pace(self, overrides: list[str]) -> tuple[float, float]:
        with self._trial() as folder:
            seconds = {}
            for epochs in (1, 3):
                run = folder.train("pace", overrides, epochs, folds=1)
                seconds[epochs] = _json(run / "fold0" / "training.json")["seconds"]
        epoch = (seconds[3] - seconds[1]) / 2
        if epoch <= 0:
            raise IchError(
                f"with {overrides}, 3 epochs took {seconds[3]} s and 1 took {seconds[1]}; run this on a machine at rest"
            )
        print(f"an epoch of a fold takes {epoch:.1f} s with {' '.join(overrides) or 'configs/demo.yaml'}", flush=True)
        return seconds[1] - epoch, epoch

    def _measure_second(self, overrides: list[str]) -> float:
        with self._trial() as folder:
            _, seconds = folder.second_stage(folder.train("first", [], 1), overrides)
        assert seconds is not None  # the folder was empty
        print(f"a second stage takes {seconds:.0f} s with {' '.join(overrides)}", flush=True)
        return seconds

    @contextmanager
    def _trial(self) -> Iterator[Folder]:
        """Make a folder for trainings that nobody reads, and remove it."""
        folder = Folder(self.data, "times", 0)
        try:
            yield folder
        finally:
            rmtree(folder.path)


class Seed:
    """All trainings of one seed, each trained when it is first asked for."""

    def __init__(self, seed: int, data: Path, options: argparse.Namespace, times: Times):
        self.seed, self.options, self.times = seed, options, times
        self.folder = Folder(data, f"seed-{seed}", seed)

    def result(self, variant: str) -> Result:
        return getattr(self, f"_{variant}")

    @property
    def time(self) -> float:
        """Seconds that each variant may train: the two-stage way's."""
        return self._two_stage.seconds

    @property
    def _second_time(self) -> float:
        return self.times.second_stage(self.options.second)

    @cached_property
    def _slice(self) -> Result:
        return self._train("slice", self.options.slice, self.options.slice_epochs)

    @cached_property
    def _start(self) -> Result:
        return self._train("start", self.options.slice, self.options.start_epochs)

    @cached_property
    def _two_stage(self) -> Result:
        return self._second(self._slice)

    @cached_property
    def _scan_model(self) -> Result:
        return self._train_scan(self.time)

    @cached_property
    def _short_scan(self) -> Result:
        return self._train_scan(self.time - self._second_time)

    @cached_property
    def _scan_plus_second_stage(self) -> Result:
        return self._second(self._short_scan)

    @cached_property
    def _blend(self) -> Result:
        from ich.results import blend, compare
        from ich.results.predictions import write_predictions

        stages, scan = self._second(self._start), self._short_scan
        members = compare.read_results([stages.path, scan.path])
        recipe = blend.Recipe("weights", by_label=False, calibration=None, any_at_least_max=False)
        blended = blend.nested(np.stack(list(members.oof.values())), members.table, recipe)
        path = self.folder.path / "blend"
        path.mkdir(exist_ok=True)
        write_predictions(compare.frame(members.table.index, blended), path / "oof.parquet")
        return Result(path, self._second_time + scan.seconds)  # the slice model is the scan model's start

    @cached_property
    def _pseudo(self) -> Result:
        start = self._start
        script(self.folder.path, "predict", start.path)
        folds = pd.read_csv(self.folder.path / "folds.csv")
        test = len(pd.read_parquet(start.path / "predictions_test.parquet", columns=[]))
        slice_pace = self.times.pace(self.options.slice)
        # An epoch has the test set's slices beside those of the other folds, which cost the same.
        pace = Pace(slice_pace.start, slice_pace.epoch * (1 + test / (len(folds) * (FOLDS - 1) / FOLDS)))
        overrides = [*self.options.slice, f"train.pseudo={start.path}"]
        epochs = pace.epochs(self.time - self._second_time - start.seconds)
        return self._second(self._train("pseudo", overrides, epochs, pace, start.seconds))

    @cached_property
    def _mix(self) -> Result:
        overrides = [*self.options.slice, *MIX]
        epochs = self.times.pace(overrides).epochs(self.time - self._second_time)
        return self._second(self._train("mix", overrides, epochs))

    def _train_scan(self, seconds: float) -> Result:
        start, pace = self._start, self.times.pace(self.options.scan)
        overrides = [*self.options.scan, f"train.init_from={start.path}"]
        return self._train("scan", overrides, pace.epochs(seconds - start.seconds), pace, start.seconds)

    def _train(
        self, name: str, overrides: list[str], epochs: int, pace: Pace | None = None, before: float = 0.0
    ) -> Result:
        """Train all folds; `before` are the seconds of the runs that it begins with or learns from."""
        run = self.folder.train(name, overrides, epochs)
        seconds = (pace or self.times.pace(overrides)).seconds(epochs)
        self._say(f"{run.name}, {epochs} epochs", seconds, run)
        return Result(run, before + seconds)

    def _second(self, first: Result) -> Result:
        path, _ = self.folder.second_stage(first.path, self.options.second)
        self._say(f"second stage on {first.path.name}", self._second_time, path)
        return Result(path, first.seconds + self._second_time)

    def _say(self, what: str, seconds: float, run: Path) -> None:
        loss = _json(run / "score.json")["weighted_log_loss"]
        print(f"seed {self.seed}: {what}, {seconds:.0f} s, log loss {loss:.4f}", flush=True)


def script(folder: Path, name: str, *arguments) -> None:
    """Run a script in a process of its own; its error is raised as ours."""
    command = list(map(str, [sys.executable, ROOT / "scripts" / f"{name}.py", *arguments]))
    done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        _, separator, message = done.stderr.rpartition("error: ")
        if not separator:
            raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")
        raise IchError(message.strip())


def archive_in(folder: Path) -> Path:
    return folder / "rsna-intracranial-hemorrhage-detection.zip"


def make_data(folder: Path, patients: int) -> None:
    """Make the archive and its images, unless they are there; a third as many test patients, for pseudo-labels."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = ["--patients", patients, "--test-patients", max(1, patients // 3)]
    script(folder, "make_demo_data", archive_in(folder), *counts, "--size", 128, "--hard")
    config = folder / "images.yaml"
    values = [f"data.sources={archive_in(folder)}", f"data.images={folder / 'images'}", "name=images"]
    config.write_text(load(ROOT / "configs" / "demo.yaml", values).resolved())
    script(folder, "preprocess", config, "--max-failures", 1)


def losses_of(results: dict[str, dict[int, Result]], folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Return each slice's weighted log loss, columns (variant, seed), and the slices' patients."""
    from ich.competition.folds import read_folds
    from ich.competition.labels import LABELS, METRIC_WEIGHTS
    from ich.competition.metrics import log_losses
    from ich.results.predictions import read_predictions

    columns = {}
    table = None
    for variant, of_seed in results.items():
        for seed, result in of_seed.items():
            folds = read_folds(folder / f"seed-{seed}" / "folds.csv")
            table = folds if table is None else table
            predictions = read_predictions(result.path / "oof.parquet").loc[table.index].to_numpy()
            of_label = log_losses(table[list(LABELS)].to_numpy(), predictions)
            columns[variant, seed] = np.average(of_label, axis=1, weights=list(METRIC_WEIGHTS.values()))
    assert table is not None
    return pd.DataFrame(columns), table["PatientID"].to_numpy()


def summary(losses: pd.DataFrame, patients: np.ndarray, seconds: dict[str, float]) -> pd.DataFrame:
    """Return a row a variant: the seeds' mean loss, its ratio to and difference from two_stage's, their errors."""
    from ich.results.bootstrap import resampled_means

    drawn = dict(zip(losses.columns, resampled_means(losses.to_numpy(), patients).T, strict=True))
    rows = {}
    for variant in losses.columns.unique(0):
        seeds = losses[variant].columns
        own, base = (losses[name].mean() for name in (variant, "two_stage"))
        of_draws = [(drawn[variant, seed], drawn["two_stage", seed]) for seed in seeds]
        ratios = own / base[seeds]
        rows[variant] = {
            "loss": own.mean(),
            "error": _deviation(np.mean([loss for loss, _ in of_draws], axis=0)),
            "difference": (own - base[seeds]).mean(),
            "difference_error": _deviation(np.mean([loss - other for loss, other in of_draws], axis=0)),
            "ratio": ratios.mean(),
            "ratio_error": _deviation(np.mean([loss / other for loss, other in of_draws], axis=0)),
            "ratio_spread": ratios.std() if len(seeds) > 1 else np.nan,
            "time": seconds[variant],
            "ratios": " ".join(f"{ratio:.3f}" for ratio in ratios),
        }
    return pd.DataFrame.from_dict(rows, "index")


def _deviation(draws: np.ndarray) -> float:
    return float(np.std(draws, ddof=1))


def figures(table: pd.DataFrame, lacking: dict[str, str], seeds: list[int]) -> dict:
    """Return the last line; the figures of a variant that is n/a are null, and `lacking` gives the reason."""
    numbers: dict[str, float | None] = {}
    errors: dict[str, float] = {}

    def put(key: str, variant: str, column: str, error: str, sign: int = 1) -> None:
        numbers[key] = None
        if variant in table.index:
            numbers[key] = round(sign * float(table.loc[variant, column]), 4)
            errors[key] = round(float(table.loc[variant, error]), 4)

    for variant in VARIANTS[:4]:
        put(variant, variant, "loss", "error")
    put("scan_vs_two_stage", "scan_model", "ratio", "ratio_error")
    both = [variant for variant in ("scan_plus_second_stage", "blend") if variant in table.index]
    best = min(both, key=lambda variant: table.loc[variant, "ratio"], default="")
    put("best_vs_two_stage", best, "ratio", "ratio_error")
    put("pseudo_gain", "pseudo", "difference", "difference_error", sign=-1)
    put("mix_gain", "mix", "difference", "difference_error", sign=-1)
    return numbers | {"best": best or None, "errors": errors, "not_available": lacking, "seeds": seeds}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def _of_seeds(seeds: list[Seed], variant: str) -> dict[int, Result]:
    return {trained.seed: trained.result(variant) for trained in seeds}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=VARIANTS, help="two_stage is always among them"
    )
    parser.add_argument("--patients", type=int, default=120, help="(default: %(default)s)")
    parser.add_argument("--slice-epochs", type=int, default=16, help="of two_stage (default: %(default)s)")
    parser.add_argument("--start-epochs", type=int, default=6, help="of a scan model's slice model (default: 6)")
    parser.add_argument("--folder", type=Path, default=ROOT / "data" / "bench_recipe", help="(default: %(default)s)")
    for name, of in (("slice", "slice models"), ("scan", "scan models"), ("second", "the second stage")):
        help_text = f"set a key of {of}; may be repeated"
        parser.add_argument(f"--{name}", action="append", default=[], metavar="SECTION.KEY=VALUE", help=help_text)
    options = parser.parse_args(argv)
    options.scan, options.second = [*SCAN, *options.scan], [*SECOND, *options.second]

    from ich.startup import import_keras

    import_keras()
    folder = (options.folder / f"{options.patients}-patients").resolve()
    make_data(folder, options.patients)
    times = Times(folder)
    for overrides in (options.slice, [*options.slice, *MIX], options.scan):
        times.pace(overrides)
    times.second_stage(options.second)
    print("all times are measured; from here on the machine may have other work", flush=True)
    seeds = [Seed(seed, folder, options, times) for seed in options.seeds]
    results = {"two_stage": _of_seeds(seeds, "two_stage")}
    lacking: dict[str, str] = {}
    for variant in VARIANTS[1:]:
        if variant in options.variants:
            try:
                results[variant] = _of_seeds(seeds, variant)
            except IchError as error:
                lacking[variant] = str(error).partition("; there are")[0]  # the list of all keys
                print(f"{variant} is n/a: {lacking[variant]}", flush=True)
        else:
            lacking[variant] = "not among --variants"
    seconds = {
        variant: float(
            np.mean([result.seconds / results["two_stage"][seed].seconds for seed, result in of_seed.items()])
        )
        for variant, of_seed in results.items()
    }
    table = summary(*losses_of(results, folder), seconds)
    print(table.round(4).to_string())
    print(json.dumps(figures(table, lacking, options.seeds)))


if __name__ == "__main__":
    main()
