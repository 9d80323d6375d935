"""The typed schema of configs/: every key with its default, which lives here and nowhere else."""

import json
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Unused(NamedTuple):
    """The context of a validation: the keys that overrides set, and the values of the file that nothing reads."""

    overridden: set[str]
    found: dict[str, str]


def _unused(section: type[BaseModel], key: str, value: Any, why: str, info: ValidationInfo) -> Any:
    """Refuse a key without effect that an override sets; note a value of the file, but the default, as unused.

    A file holds the keys of several kinds, so that one override changes the kind; a run's own config.yaml holds all. A
    whole section that is overridden counts as a file's.
    """
    path, differs = f"{section.__name__.lower()}.{key}", value != section.model_fields[key].default
    context: Unused | None = info.context
    if differs if context is None else path in context.overridden:
        raise ValueError(f"{why}; or leave it out")
    if differs and context is not None:
        context.found[path] = f"{path}={json.dumps(value)} has no effect: it {why}"
    return value


def _as_list(value: Any) -> Any:
    return value if isinstance(value, (list, tuple, NoneType)) else [value]


def _each_once(values: list[str]) -> list[str]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is named twice, and the mean counts each pass once; name it once")
    return values


class WindowConfig(Section):
    center: float  # HU
    width: float = Field(gt=0)  # HU


# pydantic names the kind of a window in the place of an error, where the file has no such step: the bar tells it from a
# key. Without kinds, an error in a mapping would come with the complaint that it is no preset's name.
_AnyWindow = Annotated[
    Annotated[str, Tag("|preset")] | Annotated[WindowConfig, Tag("|window")],
    Discriminator(lambda value: "|preset" if isinstance(value, str) else "|window"),
]


class External(Section):
    """Labeled scans beside the competition's."""

    # A folder of scripts/preprocess.py, by a config of its own with data.split=train and the same section preprocess.
    images: Path
    # A CSV like the competition's, or one with the columns SOPInstanceUID and the six labels.
    labels: Path
    # Weight of their slices in the loss, where the competition's have 1.
    weight: float = Field(1.0, gt=0)


class Data(Section):
    # Folders and zips of DICOM slices: a path, or a list of them.
    sources: Annotated[list[Path], BeforeValidator(_as_list), Field(min_length=1)]
    # The split of all slices; null takes it from the nearest folder with train or test in its name.
    split: Literal["train", "test"] | None = None
    # The long label CSV; null takes the file *_train.csv of the sources.
    labels: Path | None = None
    # The sample submission; null takes the file *_sample_submission.csv of the sources.
    sample_submission: Path | None = None
    # The folder of the PNGs and of slices.parquet.
    images: Path
    # The file of folds; null takes folds.csv in the images' folder.
    folds: Path | None = None

    # Further scans with labels of their own: in the training set of every fold, never held out nor predicted.
    external: list[External] = []

    @property
    def folds_path(self) -> Path:
        return self.folds or self.images / "folds.csv"


class Preprocess(Section):
    # Names of presets (ich.dicom.windows.PRESETS) or {center: …, width: …} in HU; files=channels takes one or three,
    # files=hu none.
    windows: Annotated[list[_AnyWindow], BeforeValidator(_as_list)] = ["brain"]
    # Side of the PNGs in pixels; null keeps the slices' own.
    size: int | None = Field(None, ge=16)
    # How slices that are not square become square.
    fit: Literal["pad", "stretch"] = "pad"
    # Crop to a square around the head, found for each slice.
    crop: bool = False
    # channels: one PNG for each slice, windows as channels; separate: a gray PNG for each window; hu: a 16-bit PNG of
    # HU + 1024.
    files: Literal["channels", "separate", "hu"] = "channels"

    @field_validator("fit")
    @classmethod
    def _has_a_size(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("size", 0) is None:
            why = "needs preprocess.size, the side of the square that slices are fitted to"
            return _unused(cls, "fit", value, why, info)
        return value

    @field_validator("crop")
    @classmethod
    def _nothing_to_fit(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("fit", "pad") != "pad":
            why = "needs preprocess.crop=false: what is cropped is square already"
            _unused(cls, "fit", info.data["fit"], why, info)
        return value


class Folds(Section):
    # Number of folds.
    n: int = Field(5, ge=2)
    # Seed of the assignment of patients to folds.
    seed: _Seed = 0
    # Leave out slices without labels or patient, and labels without slices; their number is printed.
    allow_unmatched: bool = False


class ScanModel(Section):
    """A network that reads consecutive slices of a scan at once, trained end to end."""

    # Consecutive slices that the network reads at once; train.batch_size and predict.batch_size count such windows.
    slices: int = Field(32, ge=1)
    # Layers over the slices: gru (bidirectional) or attention (a transformer encoder, positions in mm).
    kind: Literal["gru", "attention"] = "gru"
    # Units of a GRU in each direction; width of the encoder, a multiple of 4.
    units: int = Field(128, ge=4)
    # GRUs, or blocks of the encoder, one after the other.
    depth: int = Field(1, ge=1)
    # Weight of the loss of the slice classifier's own logits, beside that of the scan's; 0 trains the scan's alone.
    slice_loss: float = Field(0.5, ge=0)
    # Compute the slice classifier's activations again in the backward pass, in place of keeping them, which takes less
    # memory and more time (JAX and PyTorch only).
    remat: bool = False

    @field_validator("units")
    @classmethod
    def _has_heads(cls, value: int, info: ValidationInfo) -> int:
        if info.data.get("kind") == "attention" and value % 4:
            raise ValueError("attention has 4 heads; set it to a multiple of 4")
        return value


class Model(Section):
    # small_cnn, the name of a model of keras.applications, or hub: and a preset of keras-hub (pip install 'ich[hub]'):
    # its name, or the folder it lies in, such as hub:/kaggle/input/dinov2/keras/dinov2_small/1.
    name: str = "EfficientNetV2B0"
    # Initial weights: imagenet, the path of a weights file, or null for random ones. Of a hub: preset, imagenet takes
    # those that it comes with, whatever they were trained on.
    weights: str | None = "imagenet"
    # Dropout before the last layer.
    dropout: float = Field(0.2, ge=0, lt=1)
    # Stochastic depth: rate at which the last residual block is skipped in training, rising from 0 for the first; null
    # leaves the backbone's own, which is 0.2 for an EfficientNet and 0 for a ConvNeXt.
    drop_path: float | None = Field(None, ge=0, lt=1)
    # Exponent of GeM, which pools the last maps in the place of their mean: (mean of x^p)^(1/p), such as 3.
    gem: float | None = Field(None, gt=1, le=100)
    # Keep the backbone's batch normalization as its initial weights have it: in training too it uses the statistics
    # that they hold, and does not learn.
    freeze_batch_norm: bool = False
    # Offsets in the scan of the slices that the network reads, their windows as channels; [-1, 0, 1] is 2.5-D.
    neighbours: list[int] = Field([0], min_length=1)
    # Layers over the slices of a scan, trained together with the network; null trains a classifier of slices alone.
    scan: ScanModel | None = None


def _reached(section: type[BaseModel], value: float, info: ValidationInfo) -> float:
    epochs = info.data.get("epochs", value) - info.data.get("head_epochs", 0)
    default = section.model_fields["warmup_epochs"].default
    if value > epochs and value != default:
        whole = " of the whole network" if info.data.get("head_epochs") else ""
        raise ValueError(f"the training has {epochs} epochs{whole}; set it to these at most, or leave it at {default}")
    return value


class Train(Section):
    # Seed of initial weights, order, sampling and augmentation.
    seed: _Seed = 0
    # Epochs.
    epochs: int = Field(6, ge=1)
    # Of these, the first so many train the layers behind the backbone alone, with all else as it is, at learning_rate,
    # which falls to 0; then the whole network begins with its warm-up.
    head_epochs: int = Field(0, ge=0)
    # A finished run on the same folds, such as runs/other, whose fold k's weights are those that fold k begins with; a
    # scan model's slice classifier takes those of a slice classifier. model.weights is not read then.
    init_from: Path | None = None
    # Samples in a batch, of all devices together.
    batch_size: int = Field(32, ge=1)
    # Fill the last batch of an epoch, which is smaller, by samples of the epoch drawn anew: none is left out, and a
    # network that is compiled for a batch's shape (machine.jit_compile) is compiled once.
    fixed_batches: bool = False
    # Batches whose mean gradient makes an update, each of the same weight: as one batch so many times as large, in the
    # memory of one (batch normalization sees the small ones).
    accumulate: int = Field(1, ge=1)
    # Name of an augmentation pipeline: none, light or heavy (ich.data.augment.PIPELINES).
    augment: str = "light"
    # MixUp: alpha of the Beta distribution of two slices' shares in their mixture, such as 0.2; null does without. With
    # cutmix too, each batch draws one of both. The training loss is then that of mixtures, well above the validation's.
    mixup: float | None = Field(None, gt=0)
    # CutMix: alpha of the area of the rectangle that another slice fills, such as 1.0; null does without.
    cutmix: float | None = Field(None, gt=0)
    # Share of batches that are mixed.
    mix_share: float = Field(1.0, gt=0, le=1)
    # AdamW's learning rate after a linear warm-up; it falls to 0 on a cosine.
    learning_rate: float = Field(1e-3, gt=0)
    # Length of the warm-up, in epochs.
    warmup_epochs: float = Field(1.0, ge=0)
    # The backbone's learning rate, as a factor of that of the layers behind it.
    backbone_rate: float = Field(1.0, gt=0)
    # AdamW's weight decay.
    weight_decay: float = Field(0.01, ge=0)
    # Largest norm of the gradient over all weights.
    clip_norm: float = Field(1.0, gt=0)
    # Name of a loss (ich.models.losses.LOSSES): weighted_bce is the metric's; focal gives well predicted slices less
    # weight, and the shift of its probabilities towards 1/2 is corrected in the saved model (ich.models.prior).
    loss: str = "weighted_bce"
    # Exponent of the focal loss.
    focal_gamma: float = Field(2.0, ge=0)
    # Weights of the six labels in the loss; null takes the metric's.
    label_weights: list[float] | None = None
    # Label smoothing: 0.02 trains on 0.01 and 0.99, which is taken out of the saved model's probabilities.
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    # Momentum of an exponential moving average of the weights, such as 0.999, which is evaluated, saved and used to
    # predict; null trains without.
    ema_momentum: float | None = Field(None, gt=0, lt=1)
    # Number of slices of each series in an epoch, drawn anew each epoch; null takes all.
    slices_per_series: int | None = Field(None, ge=1)
    # Draw these from the middle of the scan up to three times as often as from its ends.
    centre_weighted: bool = False
    # Share of slices with a bleed in an epoch: all of them, and as many others as give this share. The shift of the
    # probabilities is corrected in the saved model (ich.models.prior).
    positive_share: float | None = Field(None, gt=0, lt=1)
    # A run of the same folds whose test predictions join the training of every fold as soft labels, such as runs/other;
    # null does without. Fold k takes those of its model k, the only one that has not seen the patients of fold k; their
    # own test slices are left out.
    pseudo: Path | None = None
    # Weight of these test slices in the loss, where the labeled ones have 1.
    pseudo_weight: float = Field(1.0, gt=0)
    # Validate after every so many epochs, and after the last.
    validate_every: int = Field(1, ge=1)
    # Weights to save: those of the last epoch, or of the best on the held-out fold. best is chosen on the patients
    # whose predictions are then scored, so the out-of-fold score is better than new patients will give.
    keep: Literal["last", "best"] = "last"
    # Keras's dtype policy.
    precision: Literal["float32", "mixed_float16", "mixed_bfloat16"] = "float32"

    @property
    def shifting(self) -> list[str]:
        """The settings that shift what the network learns, which `ich.models.prior.LossCorrection` takes out."""
        focal = ["train.loss=focal"] if self.loss == "focal" and self.focal_gamma else []
        return focal + (["train.label_smoothing"] if self.label_smoothing else [])

    _warm_in_time = field_validator("warmup_epochs")(classmethod(_reached))

    @field_validator("head_epochs")
    @classmethod
    def _leaves_some(cls, value: int, info: ValidationInfo) -> int:
        if value >= info.data.get("epochs", value + 1):
            raise ValueError(f"the training has {info.data['epochs']} epochs; leave the whole network one of them")
        return value

    @field_validator("focal_gamma")
    @classmethod
    def _is_focal(cls, value: float, info: ValidationInfo) -> float:
        if info.data.get("loss", "focal") != "focal":
            return _unused(cls, "focal_gamma", value, "needs train.loss=focal, which alone has a gamma", info)
        return value

    @field_validator("mix_share")
    @classmethod
    def _mixes(cls, value: float, info: ValidationInfo) -> float:
        if {"mixup", "cutmix"} <= info.data.keys() and info.data["mixup"] is None and info.data["cutmix"] is None:
            return _unused(cls, "mix_share", value, "needs train.mixup or train.cutmix", info)
        return value

    @field_validator("centre_weighted")
    @classmethod
    def _has_series(cls, value: bool, info: ValidationInfo) -> bool:
        if "slices_per_series" in info.data and info.data["slices_per_series"] is None:
            why = "needs train.slices_per_series, the number of slices to choose"
            return _unused(cls, "centre_weighted", value, why, info)
        return value

    @field_validator("positive_share")
    @classmethod
    def _one_sampling(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("slices_per_series") is not None:
            raise ValueError("train.slices_per_series is set too; an epoch is sampled in one of both ways")
        return value

    @field_validator("pseudo")
    @classmethod
    def _not_sampled_by_label(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("positive_share") is not None:
            raise ValueError(
                "train.positive_share is set too: it corrects probabilities by how often labels of 0 and 1 are shown,"
                " and pseudo-labels are neither; leave one of both out"
            )
        return value

    @field_validator("pseudo_weight")
    @classmethod
    def _has_pseudo(cls, value: float, info: ValidationInfo) -> float:
        if "pseudo" in info.data and info.data["pseudo"] is None:
            return _unused(cls, "pseudo_weight", value, "needs train.pseudo, whose test slices have it", info)
        return value


class Predict(Section):
    # Samples in a batch of validation and prediction.
    batch_size: int = Field(64, ge=1)
    # Passes of test-time augmentation whose mean is predicted, out of fold and on the test set: names of
    # ich.data.augment.PASSES.
    tta: Annotated[list[str], BeforeValidator(_as_list), AfterValidator(_each_once), Field(min_length=1)] = ["none"]
    # Mean over passes and folds: of probabilities, or of logits (the geometric mean of the odds).
    mean: Literal["probability", "logit"] = "probability"


# The kinds of second stage that read a key of the section sequence; what is not named here is the network's.
_READERS = {
    "seed": ("recurrent", "boosting"),
    "reach": ("boosting",),
    "rounds": ("boosting",),
    "tree_rate": ("boosting",),
}


class Sequence(Section):
    """The second stage, which reads the first one's predictions scan by scan."""

    # recurrent: a network over the scan; boosting: trees on the neighbors' scores; linear: a logistic regression on
    # the scan's scores, for few scans; blend: the weighted mean of all three.
    kind: Literal["recurrent", "boosting", "linear", "blend"] = "blend"
    # Input of the network: out-of-fold logits; or embeddings and logits of the fold's own model, by
    # scripts/extract_features.py. The other kinds read out-of-fold logits either way.
    features: Literal["logits", "embeddings"] = "logits"
    # Shift each fold's out-of-fold logits by an offset a label, so that all folds' models have one mean probability
    # over the test set; after scripts/predict.py. A network that reads embeddings keeps those of its own model.
    align: bool = False
    # Seed of networks and trees.
    seed: _Seed = 0
    # Networks for each fold, of consecutive seeds, whose logits are averaged.
    seeds: int = Field(1, ge=1)
    # The network: channels of each convolution.
    width: int = Field(32, ge=1)
    # The network: a convolution for each dilation.
    dilations: list[Annotated[int, Field(ge=1)]] = [1, 2, 4, 1]
    # The network: units of the GRU in each direction; 0 leaves it out.
    units: int = Field(16, ge=0)
    # The network: dropout.
    dropout: float = Field(0.3, ge=0, lt=1)
    # Epochs of the network.
    epochs: int = Field(30, ge=1)
    # Scans in a batch.
    batch_size: int = Field(16, ge=1)
    # AdamW's learning rate, as in train.
    learning_rate: float = Field(3e-3, gt=0)
    # Length of the warm-up, in epochs.
    warmup_epochs: float = Field(2.0, ge=0)
    # AdamW's weight decay.
    weight_decay: float = Field(0.02, ge=0)
    # Largest norm of the gradient over all weights.
    clip_norm: float = Field(1.0, gt=0)
    # Weights of the six labels in the loss; null takes the metric's.
    label_weights: list[float] | None = None
    # Momentum of the exponential moving average of the weights, which is saved.
    ema: float = Field(0.99, ge=0, lt=1)
    # Largest number of consecutive slices of a scan in a training sample.
    window: int = Field(40, ge=1)
    # Standard deviation of the noise added to logits in training: to the scan's, to a label's in it, to each.
    noise: float = Field(0.3, ge=0)
    # Share of training samples whose five kinds of bleeding are permuted; 0 with embeddings, which know the kinds.
    shuffle_kinds: float = Field(0.2, ge=0, le=1, validate_default=True)
    # The trees: neighbors read on either side.
    reach: int = Field(7, ge=0)
    # The trees: their number.
    rounds: int = Field(250, ge=1)
    # The trees: learning rate.
    tree_rate: float = Field(0.05, gt=0)

    @property
    def kinds(self) -> list[str]:
        """What is trained: of a blend, all kinds."""
        return ["recurrent", "boosting", "linear"] if self.kind == "blend" else [self.kind]

    _warm_in_time = field_validator("warmup_epochs")(classmethod(_reached))

    @field_validator("*")
    @classmethod
    def _is_read(cls, value: Any, info: ValidationInfo) -> Any:
        kind, key = info.data.get("kind"), str(info.field_name)
        if key in ("kind", "features", "align") or kind in (None, "blend"):
            return value
        readers = _READERS.get(key, ("recurrent",))
        if kind in readers:
            return value
        return _unused(cls, key, value, f"needs sequence.kind={' or '.join([*readers, 'blend'])}, not {kind}", info)

    @field_validator("features")
    @classmethod
    def _has_a_network(cls, value: str, info: ValidationInfo) -> str:
        if value == "embeddings" and info.data.get("kind") in ("boosting", "linear"):
            raise ValueError(
                "the network alone reads them; set sequence.kind to recurrent or blend, or sequence.features to logits"
            )
        return value

    @field_validator("align")
    @classmethod
    def _is_of_several_models(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (info.data.get("kind"), info.data.get("features")) == ("recurrent", "embeddings"):
            raise ValueError("each network reads embeddings and logits of one model; set sequence.align=false")
        return value

    @field_validator("shuffle_kinds")
    @classmethod
    def _kinds_stay(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("features") == "embeddings":
            raise ValueError("embeddings know one kind of bleeding from another; set sequence.shuffle_kinds=0")
        return value


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("1 works in this process, -1 on all cores, 0 not at all")
    return value


class Machine(Section):
    """What works on a run: it changes no result."""

    # Workers that convert, as joblib's n_jobs: 1 works in the process itself, -1 on all cores.
    jobs: Annotated[int, AfterValidator(_not_zero)] = -1
    # What these workers are. With dask, a cluster converts, and trains the folds of train_kfold, one on each worker.
    backend: Literal["processes", "threads", "dask"] = "processes"
    # Address of the Dask scheduler, such as tcp://10.0.0.5:8786.
    scheduler: str | None = None
    # Threads or processes that read and augment images.
    workers: int = Field(4, ge=1)
    # Read with processes in place of threads.
    processes: bool = False
    # Batches for each call of the backend, as in Keras's `compile` (not with PyTorch): above 1 the GPU waits less,
    # because Keras syncs on the loss once a call.
    steps_per_execution: int = Field(1, ge=1)
    # Compile by XLA (with PyTorch: torch.compile), as in Keras's `compile`: auto does so on a GPU, not with PyTorch.
    jit_compile: Literal["auto"] | bool = "auto"
    # mirrored: divide each batch among all GPUs of the machine (TensorFlow only).
    distribute: Literal["mirrored"] | None = None
    # Where each fold's training is logged: tensorboard (into the fold's directory), wandb (Weights & Biases), mlflow;
    # each needs its package (pip install 'ich[wandb]').
    log_to: Annotated[list[Literal["tensorboard", "wandb", "mlflow"]], BeforeValidator(_as_list)] = []

    @field_validator("scheduler")
    @classmethod
    def _has_a_cluster(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("backend", "dask") != "dask":
            return _unused(cls, "scheduler", value, "needs machine.backend=dask, which alone has a scheduler", info)
        return value

    @field_validator("distribute")
    @classmethod
    def _one_step_each(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and info.data.get("steps_per_execution", 1) > 1:
            raise ValueError("needs machine.steps_per_execution=1: TensorFlow fails in Keras's loop over several steps")
        if value is not None and info.data.get("jit_compile") is True:
            raise ValueError("needs machine.jit_compile=auto or false: XLA compiles nothing that several devices share")
        return value


class Config(Section):
    """One experiment: all that decides its result, where its data are, and what works on it."""

    # Name of the run: its directory is runs/NAME, its submission submissions/NAME.csv.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    data: Data
    preprocess: Preprocess = Preprocess()
    folds: Folds = Folds()
    model: Model = Model()
    train: Train = Train()
    predict: Predict = Predict()
    sequence: Sequence = Sequence()
    machine: Machine = Machine()

    _unused: dict[str, str] = {}

    @field_validator("train")
    @classmethod
    def _scans_are_whole(cls, value: Train, info: ValidationInfo) -> Train:
        model = info.data.get("model")
        for key in ("slices_per_series", "positive_share"):
            if model is not None and model.scan is not None and getattr(value, key) is not None:
                raise ValueError(f"model.scan shows whole scans, each slice once an epoch; set train.{key}=null")
        return value

    @property
    def unused(self) -> dict[str, str]:
        """The keys whose values, other than the defaults, no stage reads, as another key decides; a sentence each."""
        return self._unused

    def resolved(self) -> str:
        """The config as YAML, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
