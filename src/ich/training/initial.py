"""Initialize a training with the weights of another run's models, fold by fold (train.init_from)."""

import keras

from ich.config import Config
from ich.errors import IchError
from ich.files import sha256_of
from ich.models import scan
from ich.training.inference import load_model
from ich.training.run_data import RunData
from ich.training.run_directory import Run


def source(config: Config, data: RunData) -> Run | None:
    """Open the run that train.init_from names; return None if the config names none.

    Both runs must use the same file of folds: else the initial weights of fold k would have been trained on patients
    that fold k holds out, and the out-of-fold score would be too good.

    Raises:
        IchError: the run is none of images, lacks a fold, was trained on other folds, or kept weights chosen on the
            held-out patients where this config does not; it is of another backbone; or the config names other initial
            weights too.
    """
    path = config.train.init_from
    if path is None:
        return None
    run = Run.open(path)
    run.check_reads_images()
    run.check_finished()
    if run.environment().get("folds_sha256") != data.folds_digest["folds_sha256"]:
        raise IchError(
            f"train.init_from={path} was trained on other folds than {config.data.folds_path}, and its weights would"
            " know patients that are held out here; name a run of these folds, or set data.folds to its file"
        )
    if run.config.train.keep == "best" and config.train.keep != "best":
        raise IchError(
            f"train.init_from={path} was trained with train.keep=best: its model k was chosen on the patients that fold"
            " k holds out; name a run with train.keep=last, or set train.keep=best here, whose score has the same flaw"
        )
    theirs, ours = run.config.model.name, config.model.name
    if theirs != ours:
        raise IchError(
            f"train.init_from={path} is of {theirs}, this config of {ours}: weights fit one network alone; set"
            " model.name to the run's"
        )
    if config.model.weights not in (None, "imagenet"):
        raise IchError(
            f"train.init_from={path} and model.weights={config.model.weights} both name the initial weights; set"
            " model.weights to null"
        )
    return run


def facts(run: Run) -> dict[str, object]:
    """Return what environment.json records of the run that a training begins with."""
    models = [sha256_of(run.fold(k) / "model.keras") for k in range(run.config.folds.n)]
    return {"init_from": {"run": str(run.path), "models": models}}


def set_weights(model: keras.Model, run: Run, k: int) -> None:
    """Set the weights of a model to those of fold `k` of the run: all of them, or none.

    If one of the two is a scan model and the other a slice classifier, the weights of the slice classifier alone are
    copied; the layers over the scan stay as they are.

    Raises:
        IchError: a weight has another shape, such as for another number of channels; the run's model cannot be read.
    """
    theirs, ours = load_model(run, k), scan.without_slice_head(model)
    if not (scan.is_scan_model(theirs) and scan.is_scan_model(ours)):
        theirs, ours = scan.slice_model(theirs), scan.slice_model(ours)
    if len(theirs.weights) != len(ours.weights):
        raise IchError(
            f"train.init_from={run.path}: its network has {len(theirs.weights)} weights, this config's"
            f" {len(ours.weights)}; the section model must be the run's"
        )
    for source, target in zip(theirs.weights, ours.weights, strict=True):
        if source.shape != target.shape:
            raise IchError(
                f"train.init_from={run.path}: its weight {source.path} has the shape {tuple(source.shape)}, this"
                f" config's {tuple(target.shape)}; model.neighbours, the number of windows and the section model must"
                " fit the run's"
            )
    for source, target in zip(theirs.weights, ours.weights, strict=True):
        target.assign(source)
    for layer in ours._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # it computes with copies of its weights


def check_same(source: Run, run: Run) -> None:
    """Refuse a source whose models have changed since the training of `run` began.

    Raises:
        IchError: they are.
    """
    if run.environment().get("init_from") != facts(source)["init_from"]:
        raise IchError(
            f"{run.path} began with the models of {source.path} as they were then, and they have changed since; restore"
            " them, or give this run another name"
        )
