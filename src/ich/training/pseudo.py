"""Pseudo-labels (train.pseudo): a run's test predictions as soft labels of a fold's training, and the audit of them.

Patients of the test set may be in the training set too, and the models of a run were trained on all folds but their
own. So the labels for fold k are the predictions of model k alone, the only one that has not seen the patients whom
fold k holds out: any other model, and the mean over the folds, would carry their labels into the training. Test slices
of these patients are left out, so that the fold's score remains one of new patients.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich.competition.labels import INDEX_NAME, LABELS
from ich.config import Config
from ich.errors import IchError, name_some
from ich.results.predictions import read_predictions, read_provenance
from ich.results.result_directory import check_folds, check_result, members
from ich.training.inference import MeanOfPasses, check_test_pass, model_digest
from ich.training.joined import Joined
from ich.training.run_data import RunData, slices_digest
from ich.training.run_directory import Run


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The pseudo-labels of a fold.

    Args:
        joined: the test slices that join its training set.
        audit: what environment.json records of those of all folds: the digests of folds, test slices, models and files
            of predictions, how these were made, the number of test slices, and how many each fold leaves out.
    """

    joined: Joined
    audit: dict[str, Any]


def read(config: Config, data: RunData, k: int) -> PseudoLabels | None:
    """Read and audit the pseudo-labels for fold `k`; None if the config has none.

    Args:
        data: of the config, with the column PatientID.

    Raises:
        IchError: train.pseudo is no finished run of models of images, was trained on other folds or chose its weights
            on held-out patients; its held-out or test predictions are missing, or are of other models or slices; or a
            test slice is in the folds.
    """
    path = config.train.pseudo
    if path is None:
        return None
    run, test = _opened(path), data.readable("test")
    check_folds(path, data.folds_digest["folds_sha256"], config.data.folds_path)
    if len(test) == 0:
        raise IchError(f"{config.data.images} holds no test slices, which train.pseudo is to label")
    both = test.index.intersection(data.folds.index)
    if len(both):
        raise IchError(f"{config.data.folds_path} lists test slices: {name_some(both)}; make the folds again")
    section, of_files = run.config.predict, sha256()
    mean, models = MeanOfPasses(len(test), section.mean), []
    for fold in range(config.folds.n):
        models.append(_model_of(run, data, fold))
        for tta in section.tta:
            file, provenance = check_test_pass(run, fold, tta, models[fold])
            if provenance.get("slices") != slices_digest(test):
                raise IchError(
                    f"{file} is of other test slices than {config.data.images} holds; convert the same archive, or"
                    f" predict these by scripts/predict.py {run.path} --set data.images={config.data.images}"
                )
            of_files.update(file.read_bytes())
            if fold == k:
                mean.add(read_predictions(file).loc[test.index].to_numpy())
    of_fold = [_left_out(data, test.index, fold) for fold in range(config.folds.n)]
    held, unknown = of_fold[k]
    notes = [f"left out: {held.sum():,} test slice(s) of {_patients(data, test.index[held])}, whom the fold holds out"]
    if unknown.any():
        notes.append(f"left out: {unknown.sum():,} test slice(s) without a PatientID: the fold may hold them out")
    if run.config.train.shifting and "corrects_loss" not in run.environment():
        notes.append(f"{' and '.join(run.config.train.shifting)} of {path} shifts its probabilities, and these labels")
    used = ~(held | unknown)
    if not used.any():
        raise IchError(f"fold {k}: no test slice is left to be labeled by {path} ({'; '.join(notes)})")
    index = test.index[used].rename(INDEX_NAME)
    labels = pd.DataFrame(mean.probabilities()[used].astype(np.float32), index, list(LABELS))
    joined = Joined(
        f"test slices labeled by model {k} of {path}", labels, config.train.pseudo_weight, notes=tuple(notes)
    )
    audit = {
        "folds_sha256": data.folds_digest["folds_sha256"],
        "test_slices": len(test),
        "test_sha256": slices_digest(test),
        "models": models,
        "tta": section.tta,
        "mean": section.mean,
        "predictions_sha256": of_files.hexdigest(),
        "left_out": [{"held_out": int(a.sum()), "without_patient": int(b.sum())} for a, b in of_fold],
    }
    return PseudoLabels(joined, audit)


def _opened(path: Path) -> Run:
    """Open the run, after a check that each of its models has seen all folds but its own and nothing of that one."""
    check_result(path)
    is_blend = bool(members(path))
    run = None if is_blend else Run.open(path)
    if run is None or run.environment().get("first_stage"):
        kind = "blend" if is_blend else "second stage"
        raise IchError(
            f"train.pseudo={path} is a {kind}: its test predictions are the mean over all folds, whose models were"
            " trained on the patients that a fold holds out, and would carry their labels into its training; give a"
            " run of images, of which model k alone labels for fold k"
        )
    run.check_finished()
    if run.config.train.keep == "best":
        raise IchError(
            f"{path} was trained with train.keep=best: its model k was chosen on the patients that fold k holds out;"
            " give a run with train.keep=last"
        )
    return run


def _model_of(run: Run, data: RunData, fold: int) -> str:
    """Return the digest of a fold's model, after a check that it has predicted the slices that the fold holds out."""
    digest, path = model_digest(run, fold), run.fold(fold) / "oof.parquet"
    held_out = set(data.folds.index[data.folds["fold"] == fold])
    if (read_provenance(path) or {}).get("model") != digest or set(read_predictions(path).index) != held_out:
        raise IchError(
            f"{path} is not what the model beside it gives of the slices that fold {fold} holds out; run"
            f" scripts/predict.py {run.path}"
        )
    return digest


def _left_out(data: RunData, test: pd.Index, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which test slices are of a patient whom the fold holds out, and which have no PatientID; bool each."""
    patient = data.slices.set_index(INDEX_NAME).loc[test, "PatientID"]
    held_out = data.folds.loc[data.folds["fold"] == fold, "PatientID"]
    return patient.isin(held_out).to_numpy(), patient.isna().to_numpy()


def _patients(data: RunData, ids: pd.Index) -> str:
    patients = sorted(data.slices.set_index(INDEX_NAME).loc[ids, "PatientID"].unique())
    return f"{len(patients):,} patient(s)" + (f" ({name_some(patients)})" if patients else "")
