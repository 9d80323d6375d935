"""A trained second stage, from its files to any scans' probabilities.

Each kind of a fold is a file of `fold<k>/`; the kinds' weights are in score.json.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import keras
import numpy as np
from scipy.special import expit, logit
from tqdm import tqdm

from ich import config
from ich.competition.labels import LABELS
from ich.errors import IchError
from ich.files import sha256_of
from ich.results.result_directory import read_score
from ich.second_stage import boosting, logistic, rnn, scan_features
from ich.second_stage.scans import LIMIT, Scans
from ich.training import inference

FILES = {"recurrent": "model.keras", "boosting": "boosting.npz", "linear": "linear.json"}
"""The file of each kind in a fold's folder."""

Model: TypeAlias = keras.Model | boosting.Model | logistic.Model
"""One kind's model of one fold."""


@dataclass(frozen=True, slots=True)
class SecondStage:
    """All models of a second stage and how they are mixed.

    Args:
        section: of the config that it was trained with.
        models: kind -> the model of each fold.
        weights: kind -> its weight; they add up to 1.
    """

    section: config.Sequence
    models: Mapping[str, Sequence[Model]]
    weights: Mapping[str, float]

    @classmethod
    def read(cls, folder: Path, section: config.Sequence, folds: int) -> "SecondStage":
        """Read a second stage's directory.

        Args:
            folder: with score.json and `fold<k>/`.
            folds: how many there are.

        Raises:
            IchError: a file is missing or cannot be read, or score.json holds no weights of these kinds.
        """
        weights = read_score(folder).get("weights")
        weights = weights.get("test") if isinstance(weights, dict) else None
        if (
            not isinstance(weights, dict)
            or weights.keys() != set(section.kinds)
            or not all(isinstance(weight, float | int) and weight >= 0 for weight in weights.values())
            or abs(sum(weights.values()) - 1) > 1e-6
        ):
            raise IchError(
                f"{folder / 'score.json'} holds no weights of {', '.join(section.kinds)} that add up to 1;"
                f" {_how_to_train(folder)}"
            )
        models = {kind: [read_model(folder / f"fold{k}", kind) for k in range(folds)] for kind in section.kinds}
        return cls(section, models, weights)

    def predict(self, of: Scans, embedded: Callable[[int], Scans] | None = None, progress: bool = False) -> np.ndarray:
        """Predict scans: each kind's probabilities are averaged over the folds, and their logits mixed by the weights.

        Args:
            of: the scans with the first stage's scores.
            embedded: fold -> the same scans as that fold's network reads them, with the embeddings and scores of the
                fold's first-stage model, if the network was trained on these.
            progress: show a bar.

        Returns:
            Probabilities, float64, (n, 6), in the order of the scans' slices.

        Raises:
            IchError: the network reads embeddings and there are none, or the reverse, or they are of other slices.
        """
        if (self.section.features == "embeddings") != (embedded is not None):
            state = "reads embeddings, and there are none" if embedded is None else "reads no embeddings"
            raise IchError(f"this second stage {state}; give what sequence.features={self.section.features} says")
        mixed = np.zeros((len(of.ids), len(LABELS)))
        weighing = {kind: models for kind, models in self.models.items() if self.weights[kind]}
        total = sum(map(len, weighing.values()))
        with tqdm(total=total, desc="second stage, predict", unit="model", disable=None if progress else True) as bar:
            for kind, models in weighing.items():
                mean = np.zeros_like(mixed)
                own_inputs = None if kind == "recurrent" and embedded else inputs(kind, of, self.section)
                for k, model in enumerate(models):
                    read = _same_slices(embedded(k), of) if own_inputs is None and embedded else own_inputs
                    mean += expit(logits(kind, model, read, self.section)) / len(models)
                    bar.update()
                mixed += self.weights[kind] * logit(mean).clip(-LIMIT, LIMIT)
        return expit(mixed)


def model_path(folder: Path, kind: str) -> Path:
    """Return the path of a kind's model in a fold's folder.

    Raises:
        IchError: it is missing.
    """
    path = folder / FILES[kind]
    if not path.exists():
        raise IchError(
            f"{path} is missing, which holds the fold's kind {kind}; versions that trained it earlier wrote no such"
            f" file: {_how_to_train(folder.parent)}"
        )
    return path


def read_model(folder: Path, kind: str) -> Model:
    """Read a kind's model from a fold's folder.

    Raises:
        IchError: it is missing or cannot be read.
    """
    path = model_path(folder, kind)
    if kind == "recurrent":
        network = inference.read_model(path, f"delete {folder}, and {_how_to_train(folder.parent)}")
        if keras.backend.backend() == "tensorflow":
            network.jit_compile = False  # on a GPU, XLA would compile it anew for each length of scans
        return network
    return boosting.Model.load(path) if kind == "boosting" else logistic.Model.load(path)


def _how_to_train(folder: Path) -> str:
    return (
        f"run the command of scripts/train_sequence.py again that trained {folder}, which fits and writes what is"
        " missing, and keeps the predictions"
    )


def inputs(kind: str, of: Scans, section: config.Sequence) -> Any:
    """Return a kind's inputs: features of each slice and label, or the scans themselves."""
    if kind == "boosting":
        return scan_features.neighbor_features(of, section.reach)
    return logistic.features(of) if kind == "linear" else of


def logits(kind: str, model: Any, read: Any, section: config.Sequence) -> np.ndarray:
    """Predict logits of all slices, (n, 6), from what `inputs` gives."""
    return rnn.predict(model, read, section.batch_size) if kind == "recurrent" else model.predict(read)


def digest(folder: Path, kinds: Sequence[str]) -> str:
    """Return one SHA-256 of a fold's models, computed from those of their files."""
    return sha256(json.dumps({kind: sha256_of(folder / FILES[kind]) for kind in kinds}).encode()).hexdigest()


def _same_slices(embedded: Scans, of: Scans) -> Scans:
    if not embedded.ids.equals(of.ids):
        raise IchError("the embeddings are not of the scans that are predicted; extract them of the same slices")
    return embedded
