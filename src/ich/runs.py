"""A run's directory: what lies in it, and whose results it may hold."""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ich import convert, folds, metrics, slices, windows
from ich.config import Config, differences, load
from ich.convert import Settings
from ich.errors import IchError
from ich.files import replacing
from ich.labels import INDEX_NAME, LABELS

RUNS = Path("runs")

_PACKAGES = ("albumentations", "keras", "numpy", "opencv-python-headless", "pandas", "pydicom", "tensorflow")


class Run:
    """The files of one run, `runs/<name>/`.

    config.yaml and environment.json are written when the first training starts; `fold<k>/` and the rest by the stages.
    """

    def __init__(self, path: Path, config: Config):
        self.path = path
        self.config = config

    @classmethod
    def begin(cls, config: Config, root: Path = RUNS) -> "Run":
        """A run to train: a new one, of which nothing is written yet, or one of this config and these data to go on.

        Raises:
            IchError: its directory is of another config, of other folds or images, and the message shows the
                difference; or nothing tells which they were.
        """
        run = cls(root / config.name, config)
        run._check_owner()
        return run

    @classmethod
    def open(cls, path: Path, overrides: Iterable[str] = ()) -> "Run":
        """Open a run that exists, to predict or submit.

        Args:
            overrides: as `ich.config.load` takes them, of the sections that say where things are and how they are
                worked on: data, predict, machine.

        Raises:
            IchError: there is none, or an override is of what was trained.
        """
        if not (path / "config.yaml").is_file():
            raise IchError(f"{path} is no run: it has no config.yaml; expected a directory that scripts/train.py made")
        config = load(path / "config.yaml", overrides)
        changed = differences(load(path / "config.yaml"), config)
        if changed:
            raise IchError(
                f"{path} was trained as it was trained ({'; '.join(changed)}); only the sections data, predict and"
                " machine can be set now"
            )
        return cls(path, config)

    def claim(self, devices: Sequence[str]) -> None:
        """Make the directory this config's own. To be called when all that could be wrong with the config was checked,
        so that a mistake leaves no directory which then refuses the config without it.

        Args:
            devices: that train, for the record.

        Raises:
            IchError: another config has made it its own since.
        """
        if self.config_path.exists():
            self._check_owner()
            return
        facts = environment() | {"devices": list(devices)} | _data_digests(self.config)
        with replacing(self.environment_path) as temporary:
            temporary.write_text(json.dumps(facts, indent=2) + "\n")
        with replacing(self.config_path) as temporary:
            temporary.write_text(self.config.resolved())

    def _check_owner(self) -> None:
        now = _data_digests(self.config)
        if not self.config_path.exists():
            return
        changed = differences(load(self.config_path), self.config)
        if changed:
            raise IchError(
                f"{self.path} belongs to another config (its own / this one: {'; '.join(changed)});"
                " give this one another name, or delete the directory"
            )
        then = self.environment()
        for key, what in (("folds_sha256", "folds"), ("images_sha256", "images")):
            if then.get(key) != now[key]:
                raise IchError(
                    f"{self.path} was trained on other {what} than {self.config.data.images} and"
                    f" {self.config.data.folds_path} now hold; restore them, or give the run another name"
                )

    def environment(self) -> dict:
        """What `claim` wrote down.

        Raises:
            IchError: it is not there, or damaged.
        """
        return _read_json(self.environment_path, "says what the run was trained with and on")

    def read_score(self) -> dict:
        """The score of all folds' out-of-fold predictions; from score.json, if it was computed.

        Raises:
            IchError: as `score`.
        """
        if self.score_path.exists():
            score = _read_json(self.score_path, "holds the out-of-fold score")
            if {"weighted_log_loss", "of_prevalence"} <= score.keys():
                return score
        return self.score()

    def restart(self, k: int) -> None:
        """Remove what was made of an earlier model of fold k: a new one is about to be trained."""
        stale = [self.fold(k) / "predictions_test.parquet", self.oof_path, self.score_path, self.predictions_path]
        for path in stale:
            path.unlink(missing_ok=True)

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def oof_path(self) -> Path:
        """Out-of-fold predictions of all folds."""
        return self.path / "oof.parquet"

    @property
    def score_path(self) -> Path:
        return self.path / "score.json"

    @property
    def predictions_path(self) -> Path:
        """Predictions of the test set, the mean of the folds."""
        return self.path / "predictions_test.parquet"

    def fold(self, k: int) -> Path:
        return self.path / f"fold{k}"

    def finished_folds(self) -> list[int]:
        """The folds whose training ended: their out-of-fold predictions are written last."""
        return [k for k in range(self.config.folds.n) if (self.fold(k) / "oof.parquet").exists()]

    def check_finished(self) -> None:
        """Refuse a run that lacks a fold.

        Raises:
            IchError: naming those that it lacks.
        """
        missing = sorted(set(range(self.config.folds.n)) - set(self.finished_folds()))
        if missing:
            raise IchError(f"{self.path} lacks fold(s) {', '.join(map(str, missing))}; train them first")

    def score(self) -> dict:
        """Score all folds' out-of-fold predictions, write them as one file and the score beside it.

        Raises:
            IchError: a fold is missing, or its predictions are not those of its slices.
        """
        self.check_finished()
        oof = pd.concat([read_predictions(self.fold(k) / "oof.parquet") for k in self.finished_folds()])
        table = folds.read_folds(self.config.data.folds_path)
        if len(oof) != len(table) or not oof.index.is_unique or not oof.index.isin(table.index).all():
            raise IchError(
                f"{self.path} has {len(oof):,} out-of-fold predictions, {self.config.data.folds_path} lists"
                f" {len(table):,} slices, and they are not the same; delete the run's fold directories and train again"
            )
        oof = oof.loc[table.index]
        y, p = table[list(LABELS)].to_numpy(), oof.to_numpy()
        score = {
            "weighted_log_loss": metrics.weighted_log_loss(y, p),
            "of_prevalence": metrics.prevalence_log_loss(y),
            "by_label": dict(zip(LABELS, metrics.log_loss_by_label(y, p).tolist(), strict=True)),
            "slices": len(table),
        }
        write_predictions(oof, self.oof_path)
        with replacing(self.score_path) as temporary:
            temporary.write_text(json.dumps(score, indent=2) + "\n")
        return score


def settings(config: Config) -> Settings:
    """The config's preprocess section as settings of the conversion."""
    section = config.preprocess
    return Settings(
        windows=tuple(
            windows.preset(w) if isinstance(w, str) else windows.Window(center=w.center, width=w.width)
            for w in section.windows
        ),
        **section.model_dump(exclude={"windows"}),
    )


def slice_table(config: Config) -> pd.DataFrame:
    """The slice table of the config's images, which must be of the config's settings.

    Raises:
        IchError: not converted yet, or of other settings.
    """
    table = slices.read_table(config.data.images / "slices.parquet")
    convert.check_settings(config.data.images, settings(config))
    return table


def write_predictions(frame: pd.DataFrame, path: Path) -> None:
    """Write six float32 probabilities a slice, indexed by SOPInstanceUID."""
    with replacing(path) as temporary:
        frame.astype("float32").to_parquet(temporary)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read what `write_predictions` wrote.

    Raises:
        IchError: the file is missing, no Parquet, or has other columns.
    """
    try:
        frame = pq.read_table(path).to_pandas()
    except (pa.ArrowInvalid, OSError) as error:
        raise IchError(f"predictions {path} cannot be read ({error}); make them again") from error
    floats = all(pd.api.types.is_float_dtype(dtype) for dtype in frame.dtypes)
    if list(frame.columns) != list(LABELS) or frame.index.name != INDEX_NAME or not floats:
        raise IchError(
            f"predictions {path} have the columns {', '.join(map(str, frame.columns))} under the index"
            f" {frame.index.name}, expected the numbers {', '.join(LABELS)} under {INDEX_NAME}; make them again"
        )
    return frame


def environment() -> dict:
    """What a result depends on beside config, data and devices: versions, the code's commit, the machine."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "commit": _commit(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    """None where another package takes its place: opencv-python, another backend of Keras."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the code, with `-dirty` if it was changed since; None outside a git checkout of it."""
    here = Path(__file__)
    commands = (
        ["git", "ls-files", "--error-unmatch", here.name],  # fails if installed within some other repository
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
    )
    try:
        for command in commands:
            done = subprocess.run(command, cwd=here.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _data_digests(config: Config) -> dict[str, str]:
    """SHA-256 of what a run is trained on: the folds file, and which DICOM files the train images were made of."""
    try:
        folds_now = sha256(config.data.folds_path.read_bytes()).hexdigest()
    except OSError as error:
        raise IchError(
            f"cannot read {config.data.folds_path}: {error.strerror or error}; make it with scripts/make_folds.py"
        ) from error
    train = slices.readable(slice_table(config), "train")[["size", "crc"]].sort_index()
    images_now = sha256("".join(f"{id} {size} {crc}\n" for id, size, crc in train.itertuples()).encode()).hexdigest()
    return {"folds_sha256": folds_now, "images_sha256": images_now}


def _read_json(path: Path, what: str) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise IchError(
            f"{path}, which {what}, cannot be read ({error}); restore it, or train the run again under another name"
        ) from error
