"""A run's directory: its files, and the checks of whose results it may hold."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from ich import folders
from ich.config import Config, Predict, differences, load, overrides_of
from ich.errors import IchError, name_some
from ich.files import discard, names_in, remove, replacing, write_json
from ich.results import commands, environment
from ich.results.predictions import read_provenance
from ich.results.result_directory import check_result, members, read_mapping
from ich.training.parts import discard_parts
from ich.training.run_data import DIGESTED, RunData, read_slices, split_digest

RUNS = Path("runs")


class Run:
    """The files of one run, `runs/<name>/`.

    config.yaml and environment.json are written when the first training starts; `fold<k>/` and the rest by the stages.
    """

    def __init__(self, path: Path, config: Config):
        self.path = path
        self.config = config

    @classmethod
    def begin(cls, config: Config, root: Path = RUNS) -> "Run":
        """Open a run to train: a new one, nothing of which is written yet, or one of this config and data to resume.

        Raises:
            IchError: its directory is of another config, of other folds or images, and the message shows the
                difference; or nothing tells which they were; or it holds what is of no run.
        """
        run = cls(root / config.name, config)
        run.check_place()
        run._check_owner(RunData(config).trained_on)
        return run

    @classmethod
    def open(cls, path: Path, overrides: Iterable[str] = (), results: Path | None = None) -> "Run":
        """Open a run that exists, to predict or submit.

        Args:
            overrides: as `ich.config.load` takes them, of the sections that say where things are and how they are
                worked on: data, predict, machine; and of the second stage's, sequence.
            results: a folder that the run may have predicted into, see `ich.training.results_folder`: its section
                predict takes the place of the run's own, unless an override names another.

        Raises:
            IchError: there is none, it is a blend, or an override is of what was trained, or names other folds.
        """
        check_result(path)
        if blended := members(path):
            raise IchError(
                f"{path} is a blend, without models of its own; give its members ({', '.join(map(str, blended))}) one"
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
        if config.data.folds != own.data.folds:  # nothing reads them once all folds are predicted
            run.check_data(RunData(config).folds_digest)
        return run

    def claim(self, backend: str, devices: Sequence[str], data: Mapping[str, Any]) -> None:
        """Make the directory this config's own, once all that could be wrong with the config was checked.

        Earlier, a mistake would leave a directory that then refuses the corrected config.

        Args:
            backend, devices: of Keras, for the record.
            data: what is trained on, `RunData.facts`, and what it begins with, `initial.facts`.

        Raises:
            IchError: another config has made it its own since.
        """
        with self.locked(wait=folders.SHORT):
            self._check_owner(data)
            if self.config_path.exists():
                return
            facts = environment.environment() | {"backend": backend, "devices": list(devices)} | dict(data)
            # By `ich.models.prior.LossCorrection`; the models of earlier versions do not.
            facts["corrects_loss"] = True
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

    def _check_owner(self, digests: Mapping[str, Any]) -> None:
        self.check_place()
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
        self.check_data(digests)

    def check_data(self, digests: Mapping[str, Any]) -> None:
        """Refuse folds or images that are others than those that the run was trained on.

        Its models may have seen patients that other folds hold out.

        Args:
            digests: of the data now: `RunData.trained_on`, or a part of it.

        Raises:
            IchError: they are, or nothing records which those were.
        """
        recorded = self.environment()
        of_competition = f"{self.config.data.images} and {self.config.data.folds_path} now hold"
        for key, what, now in (
            ("folds_sha256", "folds", of_competition),
            ("images_sha256", "images", of_competition),
            ("external", "external scans, labels or weights", "data.external now names"),
            ("pseudo", "pseudo-labels", f"{self.config.train.pseudo} now gives"),
        ):
            if key in digests and recorded.get(key) != digests[key]:
                raise IchError(
                    f"{self.path} was trained on other {what} than {now}; restore them, or give the run another name"
                )

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
        table = read_slices(self.config, DIGESTED)
        own_table = read_slices(load(self.config_path), DIGESTED) if (own / "slices.parquet").exists() else None
        predicted = [read_provenance(path) or {} for path in self.passes(0).glob("test-*.parquet")]
        recorded = {
            "train": {self.environment().get("images_sha256")} - {None},
            "test": {provenance.get("slices") for provenance in predicted} - {None},
        }
        for split, digests in recorded.items():
            if not digests and own_table is not None:
                digests = {split_digest(own_table, split)}
            if digests and split_digest(table, split) not in digests:
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
            provenance = read_provenance(self.fold(k) / "oof.parquet") or {}
            theirs = {key: provenance.get(key) for key in ours}
            if None not in theirs.values() and theirs != ours:
                raise IchError(
                    f"fold {k} of {self.path} is trained and predicted by {theirs}, not {ours}; train the folds alike,"
                    f" then set the section predict of scripts/predict.py {self.path}"
                )

    def environment(self) -> dict:
        """Return what `claim` wrote into environment.json.

        Raises:
            IchError: it is not there, or damaged.
        """
        return read_mapping(self.environment_path, "says what the run was trained with and on")

    def restart(self, k: int) -> None:
        """Remove what an earlier model of fold `k` predicted: a new one is about to be trained."""
        with self.locked(wait=folders.SHORT):
            for folder in (self.passes(k), self.features(k)):
                for parts in folder.glob("*.parts"):
                    discard_parts(parts)
                discard(folder, r"(oof|seen|test)(-\w+)?\.(parquet|npy)")
            self.forget_results()

    def forget_results(self) -> None:
        """Remove what was made of all folds together: a fold's predictions are about to change."""
        with self.locked(wait=folders.SHORT):
            remove(self.predictions_path, self.score_path, self.oof_path)

    def keep_predict(self, section: Predict) -> None:
        """Write the section predict into config.yaml: the run predicts by it until another is set."""
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
        """Begin to record a command that works in this directory, see `ich.results.commands`."""
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
