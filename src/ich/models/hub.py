"""Backbones of keras-hub: ViT, DINOv2 and v3, Swin, ResNet, EfficientNet and HGNetV2, of a preset."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from ich.errors import IchError, name_some, one_line
from ich.models import adjustments

PREFIX = "hub:"
"""Prefix of a model name that is a preset of keras-hub, or the folder of one."""

_TF = (1 / 127.5, -1.0)
_TORCH = (1 / (255 * 0.226), -0.449 / 0.226)


def _prefix_tokens(config: dict[str, Any]) -> int:
    return 1 + config["num_register_tokens"]


def _patch_size(config: dict[str, Any]) -> int:
    size = config["patch_size"]
    return size if isinstance(size, int) else int(np.lcm.reduce(size))


def _swin_multiple(config: dict[str, Any]) -> int:
    # Where the windows of a stage do not fill its map, keras-hub 0.32 shifts and masks them wrongly.
    return config["patch_size"] * 2 ** (len(config["depths"]) - 1) * config["window_size"]


@dataclass(frozen=True, slots=True)
class _Family:
    """The traits of a keras-hub backbone class that differ between classes.

    Args:
        scaling: (scale, offset) of pixels of 0 to 255, for a preset that states none.
        multiple: the number that must divide height and width, by the backbone's config.
        square: whether height and width must be the same.
        prefix: number of tokens before those of patches, the class token first; None for a backbone without tokens.
        drop_path: name of the argument for the rate of stochastic depth; "blocks" if `HubBackbone` sets it in them.
        shape: name of the argument for the shape of an image.
    """

    scaling: tuple[float, float] = _TORCH
    multiple: Callable[[dict[str, Any]], int] = lambda config: 1
    square: bool = False
    prefix: Callable[[dict[str, Any]], int] | None = None
    drop_path: str | None = None
    shape: str = "image_shape"


FAMILIES: dict[str, _Family] = {
    "ViTBackbone": _Family(_TF, _patch_size, prefix=lambda config: int(config["use_class_token"])),
    "DINOV2Backbone": _Family(multiple=_patch_size, square=True, prefix=_prefix_tokens, drop_path="blocks"),
    "DINOV3Backbone": _Family(multiple=_patch_size, square=True, prefix=_prefix_tokens, drop_path="blocks"),
    "SwinTransformerBackbone": _Family(multiple=_swin_multiple, drop_path="drop_path"),
    "ResNetBackbone": _Family(),
    "EfficientNetBackbone": _Family(drop_path="dropout", shape="input_shape"),
    "HGNetV2Backbone": _Family(drop_path="blocks"),
}
"""Supported backbones, by the names of their classes in `keras_hub.models`."""

_BLOCKS = {"DINOV2Layer": "drop_path", "DINOV3Layer": "drop_path", "HGNetV2BasicLayer": "drop_path_layer"}
"""The layer of each residual block through which its branch passes; an identity at a rate of 0."""


@keras.saving.register_keras_serializable("ich")
class HubBackbone(layers.Layer):
    """A backbone of keras-hub as one layer, which saves the arguments to rebuild it.

    Args:
        family: a key of `FAMILIES`.
        settings: arguments of that class.
        drop_path: rate of stochastic depth in the last block, for the families whose blocks this class changes: those
            of keras-hub 0.32 multiply by noise and drop nothing (DINO), or take no rate (HGNetV2).
        freeze_batch_norm: as `adjustments.freeze_batch_norm`.

    Call:
        images: scaled, (batch, height, width, channels). Returns feature maps, (batch, height, width, n); of ViT and
        DINO the class token beside the mean of the patch tokens, (batch, 2 n), as linear probes of DINOv2 read.

    Raises:
        IchError: keras-hub is not installed.
    """

    def __init__(
        self,
        family: str,
        settings: dict[str, Any],
        drop_path: float = 0.0,
        freeze_batch_norm: bool = False,
        name: str = "backbone",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.family, self.settings, self.drop_path = family, settings, drop_path
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(self.dtype_policy)  # EfficientNet's layers take the global one
        try:
            config = {**settings, "dtype": self.dtype_policy}
            self.backbone = getattr(installed().models, family).from_config(config)
        finally:
            keras.config.set_dtype_policy(before)
        self.drops: list[layers.Dropout] = []
        if drop_path:
            self._drop_blocks()
        if freeze_batch_norm:
            adjustments.freeze_batch_norm(self, family)

    def _drop_blocks(self) -> None:
        blocks = [layer for layer in self.backbone._flatten_layers() if type(layer).__name__ in _BLOCKS]
        blocks = [block for block in blocks if getattr(block, "residual", True)]
        if not blocks:
            raise IchError(f"model.drop_path is {self.drop_path}, and this {self.family} has no residual block")
        for block, rate in zip(blocks, adjustments.drop_rates(self.drop_path, len(blocks)), strict=True):
            dimensions = 3 if FAMILIES[self.family].prefix else 4
            self.drops.append(adjustments.sample_dropout(rate, dimensions, dtype=self.dtype_policy))
            # Keras lets no layer be added to a built one; this layer tracks it.
            object.__setattr__(block, _BLOCKS[type(block).__name__], self.drops[-1])

    def call(self, images, training=None):
        inputs = self.backbone.input
        x = self.backbone({next(iter(inputs)): images} if isinstance(inputs, dict) else images, training=training)
        if isinstance(x, dict):
            (x,) = x.values()
        prefix = FAMILIES[self.family].prefix
        if prefix is not None:
            first = prefix(self.settings)
            mean = ops.mean(x[:, first:], axis=1)
            return ops.concatenate([x[:, 0], mean], axis=-1) if first else mean
        if len(x.shape) == 3:  # Swin
            merged = self.settings["patch_size"] * 2 ** (len(self.settings["depths"]) - 1)
            return ops.reshape(x, (-1, images.shape[1] // merged, images.shape[2] // merged, x.shape[-1]))
        return x

    def save_own_variables(self, store):
        """Save the position embeddings that DINOv2 has learned.

        keras-hub 0.32 reads them back from `position_embeddings`, which do not learn, and brings these up to date only
        if the sum of all differences is positive.
        """
        super().save_own_variables(store)
        if self.family == "DINOV2Backbone":
            embeddings = self.backbone.embeddings
            embeddings.position_embeddings.assign(embeddings.interpolated_position_embeddings)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "family": self.family,
            "settings": self.settings,
            "drop_path": self.drop_path,
            "freeze_batch_norm": adjustments.has_frozen_batch_norm(self),
        }


def installed() -> ModuleType:
    """Import and return keras-hub.

    Raises:
        IchError: it is not installed.
    """
    try:
        import keras_hub
    except ImportError as error:
        raise IchError(f"a hub: backbone needs keras-hub ({one_line(error)}): pip install 'ich[hub]'") from error
    return keras_hub


def features(
    preset: str, images: keras.KerasTensor, weights: str | None, drop_path: float | None = None
) -> keras.KerasTensor:
    """Build a backbone of keras-hub on images of 0 to 255, and pool its features.

    The images are scaled as the preset states, else as its family is trained, by the mean over the colors, as our
    channels are windows or neighboring slices.

    Args:
        preset: a name or handle that keras-hub knows, or the folder of a preset, such as Kaggle mounts.
        images: (batch, height, width, channels), any number of channels.
        weights: imagenet for the preset's own, whatever they were trained on; None for random ones. For another number
            of channels than theirs the first kernel becomes its mean, as in `ich.models.backbones.build_model`.
        drop_path: rate of stochastic depth in the last block; None leaves the preset's own.

    Returns:
        (batch, n): the mean of the last maps; of ViT and DINO as `HubBackbone` gives.

    Raises:
        IchError: keras-hub is not installed, the preset is not there or of another family, or the backbone takes no
            such images, weights or drop path.
    """
    if weights not in (None, "imagenet"):
        raise IchError(
            f"model.weights is {weights}, and a hub: backbone has the weights of its preset; set model.weights to"
            " imagenet, which takes those whatever they were trained on, or to null for random ones"
        )
    own = _loaded(preset, load_weights=False)
    family = type(own).__name__
    if family not in FAMILIES:
        raise IchError(f"{PREFIX}{preset} is a {family}, expected one of {', '.join(FAMILIES)}")
    config, traits = own.get_config(), FAMILIES[family]
    height, width, channels = images.shape[1:]
    _check_size(preset, (height, width), traits.multiple(config), traits.square)
    settings, dropped_here = _settings(config, family, (height, width, channels)), 0.0
    if drop_path is not None:
        if traits.drop_path is None:
            raise IchError(
                f"model.drop_path is {drop_path}, and keras-hub's {family} has no stochastic depth; set model.drop_path"
                " to null"
            )
        if traits.drop_path == "blocks":
            dropped_here = drop_path
        else:
            settings[traits.drop_path] = drop_path
    layer = HubBackbone(family, settings, drop_path=dropped_here)
    scale, offset = _scaling(preset, traits.scaling)
    x = layer(layers.Rescaling(scale, offset=offset)(images))
    if weights is not None:
        # ViT has a position embedding for each patch of its own size; keras-hub fits those of the others.
        shape = {} if family == "ViTBackbone" else {traits.shape: (height, width, _channels(own))}
        _copy_weights(_loaded(preset, load_weights=True, **shape), layer.backbone, preset)
    return layers.GlobalAveragePooling2D()(x) if len(x.shape) == 4 else x


def _loaded(preset: str, load_weights: bool, **options) -> keras.Model:
    """Return the backbone of a preset as keras-hub builds it."""
    hub = installed()
    names = [name for family in FAMILIES for name in getattr(hub.models, family).presets]
    if not Path(preset).is_dir() and "://" not in preset and preset not in names:
        raise IchError(
            f"{PREFIX}{preset}: there is no such folder, and keras-hub {hub.__version__} has no preset of that name; it"
            f" has {name_some(names)}"
        )
    try:
        return hub.models.Backbone.from_preset(
            preset, load_weights=load_weights, dtype=keras.config.dtype_policy(), **options
        )
    except Exception as error:  # a download, a damaged file and a shape each fail in a way of their own
        advice = "; download it elsewhere, such as from Kaggle Models, and set model.name to hub:FOLDER"
        raise IchError(
            f"the preset {PREFIX}{preset} cannot be read: {one_line(error)}{'' if Path(preset).is_dir() else advice}"
        ) from error


def _channels(backbone: keras.Model) -> int:
    """Return how many channels the images of a backbone have."""
    return keras.tree.flatten(backbone.input)[0].shape[-1]


def _check_size(preset: str, size: tuple[int, int], multiple: int, square: bool) -> None:
    if square and size[0] != size[1]:
        raise IchError(f"{PREFIX}{preset} takes square images, not {size[0]} x {size[1]}; set preprocess.size")
    if any(side % multiple for side in size):
        below = max(min(size) // multiple, 1) * multiple
        raise IchError(
            f"{PREFIX}{preset} takes images whose sides are multiples of {multiple}, not {size[0]} x {size[1]}; set"
            f" preprocess.size to {below} or {below + multiple}"
        )


def _settings(config: dict[str, Any], family: str, shape: tuple[int, int, int]) -> dict[str, Any]:
    """Return the arguments of the backbone for images of a shape, as JSON has them."""
    settings = {**config, FAMILIES[family].shape: shape}
    for key in ("dtype", "name", "trainable"):
        settings.pop(key)
    if family == "HGNetV2Backbone":
        settings["stem_channels"] = [shape[-1], *config["stem_channels"][1:]]
        settings["out_features"] = [f"stage{len(config['stackwise_stage_filters'])}"]
    if family.startswith("DINO"):
        settings["use_mask_token"] = False  # of the pretraining; it would have no gradient
        settings["drop_path_rate"] = 0.0  # see `HubBackbone`
    if family == "DINOV2Backbone":
        settings["position_embedding_shape"] = shape  # so that what it learns needs no interpolation to be saved
    return json.loads(json.dumps(settings))


def _scaling(preset: str, of_family: tuple[float, float]) -> tuple[float, float]:
    """Return scale and offset of 0 to 255, of the preset's image converter or else of its family."""
    folder, files = Path(preset), ("image_converter.json", "preprocessor_config.json")  # keras-hub's, Transformers'
    if folder.is_dir() and not any((folder / file).is_file() for file in files):
        return of_family
    try:
        converter = installed().layers.ImageConverter.from_preset(preset)
    except Exception as error:  # as in `_loaded`
        raise IchError(f"the image converter of {PREFIX}{preset} cannot be read: {one_line(error)}") from error
    scale = 1.0 if converter.scale is None else np.mean(converter.scale)
    offset = 0.0 if converter.offset is None else np.mean(converter.offset)
    return float(scale), float(offset)


def _copy_weights(donor: keras.Model, backbone: keras.Model, preset: str) -> None:
    """Copy all weights, fitted to another number of channels and, of ViT, to another number of patches."""
    theirs = [weight for weight in donor.weights if weight.name != "mask_token"]
    fitted = {weight.name: weight for weight in theirs if weight.name == "interpolated_position_embeddings"}
    for source, target in zip(theirs, backbone.weights, strict=True):
        if target.name == "position_embeddings":  # DINOv2's, for the size of the images
            source = fitted["interpolated_position_embeddings"]
        value = keras.ops.convert_to_numpy(source)
        if value.shape != tuple(target.shape):
            if value.ndim == 4:
                value = adjustments.with_channels(value, target.shape[2])
            elif "position_embedding" in target.path:
                value = _resized_positions(value, donor, backbone)
        if value.shape != tuple(target.shape):
            raise IchError(
                f"the weight {source.path} of {PREFIX}{preset} has shape {value.shape}, expected {tuple(target.shape)}"
            )
        target.assign(value)


def _resized_positions(embeddings: np.ndarray, donor: keras.Model, backbone: keras.Model) -> np.ndarray:
    """Interpolate ViT's position embeddings, (class token and patches, n), to the patches of another image size."""
    before, after = (np.floor_divide(model.image_shape[:2], model.patch_size) for model in (donor, backbone))
    first = len(embeddings) - before.prod()
    grid = embeddings[first:].reshape(1, *before, -1)
    grid = ops.image.resize(grid, tuple(map(int, after)), interpolation="bicubic", data_format="channels_last")
    patches = ops.convert_to_numpy(grid).reshape(-1, embeddings.shape[-1])
    return np.concatenate([embeddings[:first], patches])
