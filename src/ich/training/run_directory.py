"""A run's directory: what lies in it, and whose results it may hold."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ich import folders
from ich.competition import folds, metrics
from ich.competition.labels import LABELS
from ich.config import Config, Predict, differences, load, overrides_of
from ich.dicom import windows
from ich.errors import IchError, name_some
from ich.files import copy_file, discard, names_in, remove, replacing, write_json
from ich.images import convert, slice_table
from ich.images.render import Settings
from ich.results import commands, compare, environment
from ich.results.predictions import read_predictions, read_provenance, write_predictions
from ich.results.result_directory import check_result, members, read_mapping

RUNS = Path("runs")

DIGESTED = ("SOPInstanceUID", "split", "status", "size", "crc")
"""Columns of the slice table that tell which slices there are, and what they were made of."""


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
                difference; or nothing tells which they were; or it holds what is of no run.
        """
        run = cls(root / config.name, config)
        run._check_owner()
        return run

    @classmethod
    def open(cls, path: Path, overrides: Iterable[str] = (), results: Path | None = None) -> "Run":
        """Open a run that exists, to predict or submit.

        Args:
            overrides: as `ich.config.load` takes them, of the sections that say where things are and how they are
                worked on: data, predict, machine; and of the second stage's, sequence.
            results: a folder that the run may have predicted into, see `elsewhere`: how it did stands in place of the
                run's own section predict, unless an override names another.

        Raises:
            IchError: there is none, it is a blend, or an override is of what was trained, or names other folds.
        """
        check_result(path)
        if made_of := members(path):
            raise IchError(
                f"{path} is a blend, without models of its own; give its members ({', '.join(map(str, made_of))}) one"
                " by one, and then make the blend again by the command that made it (scripts/blend.py)"
            )
        kept = {}
        if results is not None and (results / "config.yaml").is_file():
            kept = read_mapping(results / "config.yaml").get("predict", {})
        own = load(path / "config.yaml")
        config = load(path / "config.yaml", [*overrides_of("predict", kept), *overrides])
        changed = differences(own, config)
        if changed:
            raise IchError(
                f"{path}: these settings cannot change after training ({'; '.join(changed)}); only the sections data,"
                " predict, sequence and machine can be set now"
            )
        run = cls(path, config)
        if config.data.folds != own.data.folds:  # of which the finished folds ask no more
            run.check_folds()
        return run

    def claim(self, backend: str, devices: Sequence[str]) -> None:
        """Make the directory this config's own. To be called when all that could be wrong with the config was checked,
        so that a mistake leaves no directory which then refuses the config without it.

        Args:
            backend, devices: of Keras, which train, for the record.

        Raises:
            IchError: another config has made it its own since.
        """
        with self.locked(wait=folders.SHORT):
            self._check_owner()
            if self.config_path.exists():
                return
            facts = (
                environment.environment() | {"backend": backend, "devices": list(devices)} | _data_digests(self.config)
            )
            write_json(self.environment_path, facts)
            with replacing(self.config_path) as temporary:
                temporary.write_text(self.config.resolved())

    def locked(self, fold: int | None = None, wait: float = 0) -> AbstractContextManager[None]:
        """Keep other processes from writing into the directory, or into that of a fold, within a block.

        A fold has a lock of its own, as several processes may train a fold each; what they write for all folds, they
        write with the directory's lock, for which they wait some seconds.

        Raises:
            IchError: another process works there, or the directory holds what is of no run.
        """
        return folders.locked(self.path, self.check_place, "" if fold is None else f"fold{fold}", wait)

    @contextmanager
    def locked_whole(self) -> Iterator[None]:
        """Keep others from writing into the directory and that of any fold, to predict; raises as `locked`."""
        advice = "make room or rights for it, or write into another folder (--out)"
        with ExitStack() as locks:
            for name in ("", *(f"fold{k}" for k in range(self.config.folds.n))):
                locks.enter_context(folders.locked(self.path, self.check_place, name, advice=advice))
            yield

    def check_place(self) -> None:
        """Refuse a directory that holds what is of no run, second stage or blend.

        Raises:
            IchError: it does.
        """
        ours = folders.is_ours(self.path, folders.RESULT)
        others = set(names_in(self.path)) - {"environment.json", "folds.csv"}
        if ours and others and not self.config_path.exists():
            raise IchError(
                f"{self.path} holds {name_some(sorted(others))} without the config.yaml that made them; restore it, or"
                " name another directory"
            )

    def _check_owner(self) -> None:
        self.check_place()
        now = _data_digests(self.config)
        if not self.config_path.exists():
            return
        if members(self.path) or self.environment().get("first_stage"):
            raise IchError(
                f"{self.path} is a {'blend' if members(self.path) else 'second stage'}, expected a run of this config;"
                " give this one another name (--set name=…)"
            )
        changed = differences(load(self.config_path), self.config)
        if changed:
            raise IchError(
                f"{self.path} belongs to another config (its own / this one: {'; '.join(changed)});"
                " give this one another name, or delete the directory"
            )
        self._check_data(now)

    def check_data(self) -> None:
        """Refuse folds or images that are others than those that the run was trained on.

        Raises:
            IchError: they are, or nothing tells which those were.
        """
        self._check_data(_data_digests(self.config))

    def check_folds(self) -> None:
        """Refuse folds that are others than those that the run was trained on: its models know patients held out there.

        Raises:
            IchError: they are, or nothing tells which those were.
        """
        self._check_data(_folds_digest(self.config))

    def check_same_slices(self) -> None:
        """Refuse images of other slices than the run's own: what is made of them would take the place of the run's.

        A folder that was moved, or converted once more from the same files, holds the same slices. Of the test set
        those count that the run has predicted or, before, those of its own images, as long as they are there.

        Raises:
            IchError: they are of others.
        """
        own = load(self.config_path).data.images
        if self.config.data.images.resolve() == own.resolve():
            return
        table = slices_of(self.config, DIGESTED)
        theirs = slices_of(load(self.config_path), DIGESTED) if (own / "slices.parquet").exists() else None
        made = [read_provenance(path) or {} for path in self.passes(0).glob("test-*.parquet")]
        then = {"train": {self.environment().get("images_sha256")}, "test": {one.get("slices") for one in made}}
        for split, digests in then.items():
            digests -= {None}
            if not digests and theirs is not None:
                digests = {slices_digest(_readable(theirs, split))}
            if digests and slices_digest(_readable(table, split)) not in digests:
                raise IchError(
                    f"{self.config.data.images} holds other {split} slices than {self.path} is of, whose results they"
                    " would replace; give images of the same slices, or another folder to write into (--out)"
                )

    def check_passes(self) -> None:
        """Refuse other passes than finished folds were predicted in, which training does not predict again.

        Raises:
            IchError: the section predict is of others.
        """
        ours = self.config.predict.model_dump(include={"tta", "mean"})
        for k in self.finished_folds():
            made = read_provenance(self.fold(k) / "oof.parquet") or {}
            theirs = {key: made.get(key) for key in ours}
            if None not in theirs.values() and theirs != ours:
                raise IchError(
                    f"fold {k} of {self.path} is trained and predicted by {theirs}, not {ours}; train the folds alike,"
                    f" then set the section predict of scripts/predict.py {self.path}"
                )

    def _check_data(self, now: dict[str, str]) -> None:
        then = self.environment()
        for key, what in (("folds_sha256", "folds"), ("images_sha256", "images")):
            if key in now and then.get(key) != now[key]:
                raise IchError(
                    f"{self.path} was trained on other {what} than {self.config.data.images} and"
                    f" {self.config.data.folds_path} now hold; restore them, or give the run another name"
                )

    def environment(self) -> dict:
        """What `claim` wrote down.

        Raises:
            IchError: it is not there, or damaged.
        """
        return read_mapping(self.environment_path, "says what the run was trained with and on")

    def read_score(self) -> dict:
        """The score of all folds' out-of-fold predictions; from score.json, if it was computed.

        Raises:
            IchError: as `score`.
        """
        if self.score_path.exists():
            score = read_mapping(self.score_path, "holds the out-of-fold score")
            if {"weighted_log_loss", "of_prevalence", "plain_weighted_log_loss"} <= score.keys():
                return score
        return self.score()

    def restart(self, k: int) -> None:
        """Remove what was made of an earlier model of fold k: a new one is about to be trained."""
        with self.locked(wait=folders.SHORT):
            for folder in (self.passes(k), self.features(k)):
                for parts in folder.glob("*.parts"):
                    discard_parts(parts)
                discard(folder, r"(oof|seen|test)(-\w+)?\.(parquet|npy)")
            self.forget_results()

    def forget_results(self) -> None:
        """Remove what was made of all folds together: it is about to be made of others, or in another way."""
        with self.locked(wait=folders.SHORT):
            remove(self.predictions_path, self.score_path, self.oof_path)

    def elsewhere(self, path: Path) -> "Run":
        """The same run with another folder for its results, for one that cannot be written into.

        It gets a copy of all but the models, so that what was predicted is not predicted again.

        Raises:
            IchError: the folder has models of its own, or results of another run, or anything else.
        """
        if path.resolve() == self.path.resolve():
            return self
        other = Run(path, self.config)

        def check() -> None:
            if not folders.is_ours(path, folders.RESULT):
                return
            if any(path.glob("fold*/model.keras")):
                raise IchError(
                    f"{path} is a run with models of its own; give a new folder for the results of {self.path}"
                )
            if not self._has_results_in(other):
                raise IchError(f"{path} holds the results of another run than {self.path}; give a new folder")

        with folders.locked(path, check):
            # Later, what is missing of all folds together was removed, as it is about to be made in another way.
            begun = other.config_path.exists()
            files = [
                self.environment_path,
                self.path / commands.FILE,
                *([] if begun else [self.oof_path, self.score_path]),
            ]
            for k in range(self.config.folds.n):
                files += [self.fold(k) / "oof.parquet", *self.passes(k).glob("*.parquet")]
            for file in files:
                target = path / file.relative_to(self.path)
                if file.exists() and not target.exists():
                    copy_file(file, target)
            kept = load((other if begun else self).config_path).predict
            with replacing(other.config_path) as temporary:
                temporary.write_text(self.config.model_copy(update={"predict": kept}).resolved())
        return other

    def _has_results_in(self, other: "Run") -> bool:
        """Return whether the results in another directory, if any, were made by this run's config and models."""
        if other.environment() != self.environment():
            return False
        if other.config_path.exists() and differences(load(other.config_path), load(self.config_path)):
            return False
        for k in range(self.config.folds.n):
            theirs, own = (read_provenance(run.fold(k) / "oof.parquet") or {} for run in (other, self))
            if theirs.get("model") not in (None, own.get("model")):
                return False
        return True

    def keep_predict(self, section: Predict) -> None:
        """Write down how the run's predictions are made: they are made so until told otherwise."""
        config = load(self.config_path)
        if config.predict != section:
            with replacing(self.config_path) as temporary:
                temporary.write_text(config.model_copy(update={"predict": section}).resolved())

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

    def passes(self, k: int) -> Path:
        """Where fold k's logits lie: oof-<pass>.parquet of the slices held out, test-<pass>.parquet of the test set."""
        return self.fold(k) / "passes"

    def features(self, k: int) -> Path:
        """Where the features of fold k's model lie; see `ich.second_stage.embeddings`."""
        return self.fold(k) / "features"

    def finished_folds(self) -> list[int]:
        """The folds whose training ended: their out-of-fold predictions are written last."""
        return [k for k in range(self.config.folds.n) if (self.fold(k) / "oof.parquet").exists()]

    def work(self, *patterns: str) -> commands.Work:
        """What a command is about to do in this directory by the run's images and folds; see `ich.results.commands`."""
        made_of = commands.of_images(self.config.data.images, self.config.data.folds_path)
        return commands.Work(self.path, *patterns, made_of=made_of)

    def check_reads_images(self) -> None:
        """Refuse a second stage, whose models read predictions.

        Raises:
            IchError: naming what it was trained on.
        """
        if first := self.environment().get("first_stage"):
            raise IchError(
                f"{self.path} is a second stage, whose models read no images; give a run that it was trained on:"
                f" {', '.join(first)}"
            )

    def check_finished(self) -> None:
        """Refuse a run that lacks a fold.

        Raises:
            IchError: naming those that it lacks.
        """
        missing = sorted(set(range(self.config.folds.n)) - set(self.finished_folds()))
        if missing:
            raise IchError(
                f"{self.path} lacks fold(s) {', '.join(map(str, missing))}; train them first:"
                f" scripts/train_kfold.py {self.config_path}"
            )

    def score(self) -> dict:
        """Score all folds' out-of-fold predictions, write them as one file and the score beside it.

        Other processes are kept from the directory meanwhile.

        Returns:
            What score.json holds: `ich.competition.metrics.summary`; tta and mean, how the predictions were made;
            plain_weighted_log_loss, the score of one pass over the slices as they are, and plain_interval, the 95 %
            interval of the score minus that one; shift, if the loss shifts probabilities: what does, and for each label
            the mean predicted and the share found.

        Raises:
            IchError: a fold is missing, its predictions are not those of its slices, or two folds' were made in two
                ways.
        """
        self.check_finished()
        paths = [self.fold(k) / "oof.parquet" for k in self.finished_folds()]
        made = [read_provenance(path) or {} for path in paths]
        how = {key: made[0].get(key) for key in ("tta", "mean")}
        for k, fold in enumerate(made):
            if {key: fold.get(key) for key in how} != how:
                raise IchError(
                    f"the out-of-fold predictions of {self.path} were made in two ways (fold 0: {made[0]}, fold {k}:"
                    f" {fold}); run scripts/predict.py {self.path} to make all in one"
                )
        table = folds.read_folds(self.config.data.folds_path)
        y, oof = table[list(LABELS)].to_numpy(), self._together(paths, table.index)
        score = metrics.summary(y, oof.to_numpy()) | how
        score["plain_weighted_log_loss"] = score["weighted_log_loss"]
        if how["tta"] not in (None, ["none"]):
            plain = self._together([self.passes(k) / "oof-none.parquet" for k in self.finished_folds()], table.index)
            both = {"passes": oof.to_numpy(np.float64), "plain": expit(plain.to_numpy(dtype=np.float64))}
            score["plain_weighted_log_loss"] = metrics.weighted_log_loss(y, both["plain"])
            passes = compare.compare(table, both, baseline="plain").loc["passes"]
            score["plain_interval"] = [float(passes["difference_low"]), float(passes["difference_high"])]
        if self.config.train.shifting and "first_stage" not in self.environment():
            means = zip(LABELS, oof.mean().tolist(), y.mean(axis=0).tolist(), strict=True)
            score["shift"] = {
                "causes": self.config.train.shifting,
                "labels": {label: {"predicted": mean, "found": share} for label, mean, share in means},
            }
        with self.locked(wait=folders.SHORT):
            write_predictions(oof, self.oof_path, how | {"models": [fold.get("model") for fold in made]})
            write_json(self.score_path, score)
        return score

    def _together(self, paths: list[Path], ids: pd.Index) -> pd.DataFrame:
        """All folds' predictions as one frame, in the order of the ids."""
        frame = pd.concat([read_predictions(path) for path in paths])
        if len(frame) != len(ids) or not frame.index.is_unique or not frame.index.isin(ids).all():
            raise IchError(
                f"{self.path} has {len(frame):,} out-of-fold predictions, {self.config.data.folds_path} lists"
                f" {len(ids):,} slices, and they are not the same; delete the run's fold directories and train again"
            )
        return frame.loc[ids]


def discard_parts(path: Path) -> None:
    """Remove the parts of which a file of passes or features is put together, those of other models and slices too.

    Args:
        path: of the file, or of its parts' folder.
    """
    folder = path.with_suffix(".parts")
    for parts in folder.glob("[0-9a-f]" * 16):
        discard(parts, r"[0-9]{9}\.npy")
    discard(folder, "")


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


def slices_of(config: Config, columns: Sequence[str] = tuple(slice_table.SCHEMA.names)) -> pd.DataFrame:
    """The slice table of the config's images, which must be of the config's settings.

    Args:
        columns: as `slices.read_table` takes them.

    Raises:
        IchError: not converted yet, or of other settings.
    """
    table = slice_table.read_table(config.data.images / "slices.parquet", columns)
    convert.check_settings(config.data.images, settings(config))
    return table


def _data_digests(config: Config) -> dict[str, str]:
    """SHA-256 of what a run is trained on: the folds file, and which DICOM files the train images were made of."""
    folds_now = _folds_digest(config)
    train = _readable(slices_of(config, DIGESTED), "train")
    return folds_now | {"images_sha256": slices_digest(train)}


def _readable(table: pd.DataFrame, split: str) -> pd.DataFrame:
    """The readable slices of a split, in the order that digests of the split are taken in."""
    found = slice_table.readable(table, split)
    return found.sort_index() if split == "train" else found


def _folds_digest(config: Config) -> dict[str, str]:
    try:
        return {"folds_sha256": sha256(config.data.folds_path.read_bytes()).hexdigest()}
    except OSError as error:
        raise folds.cannot_read(config.data.folds_path, error) from error


def slices_digest(table: pd.DataFrame) -> str:
    """SHA-256 of which DICOM files slices were made of, in their order.

    Args:
        table: size and crc of the files, indexed by SOPInstanceUID.
    """
    digest = sha256()
    for id, size, crc in zip(table.index, table["size"], table["crc"], strict=True):
        digest.update(f"{id} {size} {crc}\n".encode())
    return digest.hexdigest()
