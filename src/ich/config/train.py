"""The sections train and predict: the training of the slice classifier or scan model, and its predictions."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from ich.config.section import Section, Seed, as_list, check_warmup, refuse_unused


class Train(Section):
    # Seed of initial weights, order, sampling and augmentation.
    seed: Seed = 0
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
    # cpu, or device: the CPU draws the augmentation of each slice, and the training model applies it in one warp, MixUp
    # and CutMix behind it, for a GPU that waits for the CPU. The draws are the same, and so is the saved model's input.
    augment_on: Literal["cpu", "device"] = "cpu"
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

    @field_validator("augment_on")
    @classmethod
    def _has_augment(cls, value: str, info: ValidationInfo) -> str:
        if value != "cpu" and info.data.get("augment") == "none":
            raise ValueError("train.augment is none, which leaves nothing to do there; set it to cpu, or train.augment")
        return value

    _warm_in_time = field_validator("warmup_epochs")(classmethod(check_warmup))

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
            return refuse_unused(cls, "focal_gamma", value, "needs train.loss=focal, which alone has a gamma", info)
        return value

    @field_validator("mix_share")
    @classmethod
    def _mixes(cls, value: float, info: ValidationInfo) -> float:
        if {"mixup", "cutmix"} <= info.data.keys() and info.data["mixup"] is None and info.data["cutmix"] is None:
            return refuse_unused(cls, "mix_share", value, "needs train.mixup or train.cutmix", info)
        return value

    @field_validator("centre_weighted")
    @classmethod
    def _has_series(cls, value: bool, info: ValidationInfo) -> bool:
        if "slices_per_series" in info.data and info.data["slices_per_series"] is None:
            reason = "needs train.slices_per_series, the number of slices to choose"
            return refuse_unused(cls, "centre_weighted", value, reason, info)
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
            return refuse_unused(cls, "pseudo_weight", value, "needs train.pseudo, whose test slices have it", info)
        return value


def _each_once(values: list[str]) -> list[str]:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is named twice, and the mean counts each pass once; name it once")
    return values


class Predict(Section):
    # Samples in a batch of validation and prediction.
    batch_size: int = Field(64, ge=1)
    # Passes of test-time augmentation whose mean is predicted, out of fold and on the test set: names of
    # ich.data.augment.PASSES.
    tta: Annotated[list[str], BeforeValidator(as_list), AfterValidator(_each_once)] = Field(["none"], min_length=1)
    # Mean over passes and folds: of probabilities, or of logits (the geometric mean of the odds).
    mean: Literal["probability", "logit"] = "probability"
