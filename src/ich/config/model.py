"""The section model: the slice classifier, and the layers over the slices of a scan."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from ich.config.section import Section


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
