import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import sys

import keras
import numpy as np
import pytest
from keras import layers

from ich.errors import IchError
from ich.models import adjustments, backbones, gradcam, hub, scan
from ich.training.inference import read_model

BLOCK = {"patch_size": 4, "num_layers": 2, "hidden_dim": 8, "num_heads": 2, "image_shape": (16, 16, 3)}
DINO = BLOCK | {"intermediate_dim": 16, "num_register_tokens": 2}
STACKS = {"kernel_sizes": 3, "num_repeats": 2, "input_filters": 8, "output_filters": 8, "expansion_ratios": 1}
STACKS |= {"squeeze_and_excite_ratios": 0.25, "strides": 2, "block_types": "v1"}
TINY = {
    "ViTBackbone": BLOCK | {"mlp_dim": 16},
    "DINOV2Backbone": DINO | {"position_embedding_shape": (24, 24, 3)},
    "DINOV3Backbone": DINO,
    "SwinTransformerBackbone": {
        "image_shape": (32, 32, 3),
        "embed_dim": 4,
        "depths": (1, 1),
        "num_heads": (1, 2),
        "window_size": 2,
    },
    "ResNetBackbone": {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 4],
        "stackwise_num_blocks": [1, 1],
        "stackwise_num_strides": [1, 2],
        "block_type": "basic_block",
    },
    "EfficientNetBackbone": {
        **{f"stackwise_{key}": [value] for key, value in STACKS.items()},
        "width_coefficient": 1.0,
        "depth_coefficient": 1.0,
    },
    "HGNetV2Backbone": {
        "depths": [2],
        "embedding_size": 8,
        "hidden_sizes": [16],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
        "use_learnable_affine_block": False,
        "stackwise_stage_filters": [(8, 4, 8, 2, 2, 3)],
        "apply_downsample": [True],
        "use_lightweight_conv_block": [False],
    },
}
TOKENS = ("ViTBackbone", "DINOV2Backbone", "DINOV3Backbone")
WITH_NORM = ("ResNetBackbone", "EfficientNetBackbone", "HGNetV2Backbone")
WITH_DROP_PATH = (
    "DINOV2Backbone",
    "DINOV3Backbone",
    "SwinTransformerBackbone",
    "EfficientNetBackbone",
    "HGNetV2Backbone",
)

pytestmark = [
    pytest.mark.hub,
    pytest.mark.filterwarnings("ignore:Layer 'attn' .* was passed an input with a mask:UserWarning"),
]


@pytest.fixture(autouse=True)
def fresh():
    keras.utils.set_random_seed(0)
    yield
    keras.backend.clear_session()


@pytest.fixture(scope="module")
def keras_hub():
    return pytest.importorskip("keras_hub", reason="needs keras-hub: pip install 'ich[hub]'")


@pytest.fixture(scope="module")
def preset(keras_hub, tmp_path_factory):
    """Makes the folder of a preset of a family, of weights that all count, once."""
    folders = {}

    def make(family):
        if family not in folders:
            backbone = getattr(keras_hub.models, family)(**TINY[family])
            stir(backbone.weights)
            folders[family] = tmp_path_factory.mktemp(family)
            backbone.save_to_preset(str(folders[family]))
        return folders[family]

    return make


def stir(weights):
    rng = np.random.default_rng(0)
    for weight in weights:
        if "seed" not in weight.name:
            weight.assign(np.asarray(weight) + 0.3 * rng.random(weight.shape))


def array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def gray_images(size, channels, count=3):
    return np.repeat(np.random.default_rng(0).integers(0, 256, (count, size, size, 1), dtype=np.uint8), channels, -1)


def side_of(family):
    return TINY[family].get("image_shape", (32,))[0]


def built(preset, family, size=None, channels=3, weights="imagenet", **options):
    size = size or side_of(family)
    return backbones.build_model(f"hub:{preset(family)}", (size, size, channels), weights=weights, **options)


def features_of(model, images, **options):
    return array(keras.Model(model.input, model.get_layer("logits").input)(images, **options))


def read_again(model, folder):
    model.save(folder / "again.keras")
    return read_model(folder / "again.keras", "")


def pooled(family, output):
    """What keras-hub's own backbone gives, pooled as the documentation says."""
    if isinstance(output, dict):
        output = output["stage1"]
    output = array(output)
    if family not in TOKENS:
        return output.reshape(len(output), -1, output.shape[-1]).mean(axis=1)
    first = 1 if family == "ViTBackbone" else 3
    return np.concatenate([output[:, 0], output[:, first:].mean(axis=1)], axis=-1)


# ------------------------------------------------------------------------------------------------- every family


@pytest.mark.parametrize("family", TINY)
def test_features_are_those_of_keras_hub_for_any_channels(keras_hub, preset, family):
    """On gray images; the first kernel is all that differs, and DINOv2's positions are for another size."""
    assert set(TINY) == set(hub.FAMILIES)
    size = side_of(family)
    options = {"image_shape": (size, size, 3)} if family == "DINOV2Backbone" else {}
    theirs = keras_hub.models.Backbone.from_preset(str(preset(family)), **options)
    scale, offset = (1 / 127.5, -1) if family == "ViTBackbone" else (1 / 255 / 0.226, -0.449 / 0.226)
    given = theirs.input
    images = gray_images(size, 3) * np.float32(scale) + np.float32(offset)
    expected = pooled(family, theirs({next(iter(given)): images} if isinstance(given, dict) else images))
    for channels in (3, 5):
        model = built(preset, family, channels=channels)
        np.testing.assert_allclose(features_of(model, gray_images(size, channels)), expected, rtol=1e-3, atol=1e-4)
        logits, features = backbones.with_features(model)([gray_images(size, channels)])
        assert logits.shape == (3, 6)
        np.testing.assert_allclose(array(features), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", TINY)
def test_another_image_size_and_a_saved_model(preset, family, tmp_path):
    """Whatever weights training ends with: keras-hub alone saves DINOv2's positions only if their sum has risen."""
    size = side_of(family) * 2
    model = built(preset, family, size, channels=1)
    for weight in model.trainable_weights:
        weight.assign(array(weight) - 0.1 * np.random.default_rng(1).random(weight.shape))
    images = gray_images(size, 1)
    expected = array(model(images))
    assert np.isfinite(expected).all()
    again = read_again(model, tmp_path)
    np.testing.assert_array_equal(array(again(images)), expected)
    if family not in TOKENS:
        trunk, head = gradcam.split(again)
        assert len(trunk.output.shape) == 4
        np.testing.assert_allclose(array(head(trunk(images))), expected, rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(
        IchError, match=r"pools no feature maps .* features are the class token's and the patch tokens'"
    ):
        gradcam.split(again)


@pytest.mark.parametrize("family", WITH_DROP_PATH)
def test_stochastic_depth_drops_whole_samples(preset, family, tmp_path):
    """Equal images differ by what was dropped alone: in few ways, where noise would make each another."""
    model = built(preset, family, drop_path=0.5)
    images = np.repeat(gray_images(side_of(family), 3, 1), 48, axis=0)
    expected = features_of(model, images)
    for network in (model, read_again(model, tmp_path)):
        np.testing.assert_allclose(features_of(network, images), expected[:1] + 0 * expected, rtol=1e-3, atol=1e-4)
        ways = np.unique(features_of(network, images, training=True).round(2), axis=0)
        assert 1 < len(ways) <= 4  # two branches in the last block have the rate, or one
    none = built(preset, family, drop_path=0.0)
    np.testing.assert_allclose(features_of(none, images), expected, rtol=1e-3, atol=1e-4)
    assert len(np.unique(features_of(none, images, training=True).round(2), axis=0)) == 1


@pytest.mark.parametrize("family", WITH_NORM)
def test_frozen_normalization_is_frozen_in_the_saved_model_too(preset, family, tmp_path):
    model = built(preset, family, freeze_batch_norm=True)
    images = gray_images(32, 3)
    for network in (model, read_again(model, tmp_path)):
        with scan.frozen_backbone(network):  # a head that is trained alone first leaves it as it was
            assert len(network.trainable_weights) == 2
        norms = [part for part in network._flatten_layers() if isinstance(part, layers.BatchNormalization)]
        still = {id(weight) for norm in norms for weight in norm.weights}
        assert len(still) == 4 * len(norms) > 0
        assert not still & {id(weight) for weight in network.trainable_weights}
        before = [array(weight) for weight in network.weights]
        if family != "EfficientNetBackbone":  # it has stochastic depth of its own
            np.testing.assert_allclose(
                features_of(network, images, training=True), features_of(network, images), rtol=1e-4
            )
        features_of(network, images, training=True)
        for weight, value in zip(network.weights, before, strict=True):
            np.testing.assert_array_equal(array(weight), value)
    free = read_again(built(preset, family), tmp_path)
    assert all(norm.trainable for norm in free._flatten_layers() if isinstance(norm, layers.BatchNormalization))


def test_a_model_trains_with_all_of_it(preset):
    model = built(preset, "HGNetV2Backbone", channels=1, drop_path=0.2, gem=3, freeze_batch_norm=True)
    model.compile("adam", "mse")
    before = [array(weight) for weight in model.trainable_weights]
    model.train_on_batch(gray_images(32, 1), np.zeros((3, 6)))
    moved = [not np.array_equal(array(w), v) for w, v in zip(model.trainable_weights, before, strict=True)]
    assert np.mean(moved) > 0.9
    assert model.get_layer("gem").exponent == 3


# ------------------------------------------------------------------------------------------------- weights and scaling


def test_no_weights_are_random_ones(preset):
    drawn, pretrained = (
        built(preset, "ResNetBackbone", weights=w).get_layer("backbone").weights for w in (None, "imagenet")
    )
    with_axes = [k for k, weight in enumerate(drawn) if len(weight.shape) == 4]
    assert not any(np.array_equal(array(drawn[k]), array(pretrained[k])) for k in with_axes)


def test_the_preset_says_how_images_are_scaled(keras_hub, preset, tmp_path):
    converter = keras_hub.layers.ResNetImageConverter
    folder = preset("ResNetBackbone")
    for name, options, expected in (
        ("each", {"scale": [0.1, 0.2, 0.3], "offset": [-1.0, -2.0, -6.0]}, (0.2, -3.0)),
        ("one", {"scale": 0.5, "image_size": (8, 8)}, (0.5, 0.0)),
        ("none", {}, (1.0, 0.0)),
    ):
        (tmp_path / name).mkdir()
        for file in folder.iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        converter(**options).save_to_preset(str(tmp_path / name))
        model = backbones.build_model(f"hub:{tmp_path / name}", (32, 32, 3), weights="imagenet")
        (scaling,) = [layer for layer in model.layers if isinstance(layer, layers.Rescaling)]
        assert (scaling.scale, scaling.offset) == pytest.approx(expected)
    (tmp_path / "one" / "image_converter.json").write_text("{")
    with pytest.raises(IchError, match=r"the image converter of hub:.*one cannot be read"):
        backbones.build_model(f"hub:{tmp_path / 'one'}", (32, 32, 3))


def test_positions_of_vit_are_interpolated_for_more_patches(preset, keras_hub):
    donor = keras_hub.models.Backbone.from_preset(str(preset("ViTBackbone")))
    y, x = np.mgrid[:4, :4].astype(np.float32)
    token = np.full((1, 8), 7, np.float32)
    rows = np.concatenate([token, np.stack([y, x] + [np.ones_like(x)] * 6, axis=-1).reshape(16, 8)])
    larger = keras_hub.models.ViTBackbone(**TINY["ViTBackbone"] | {"image_shape": (32, 24, 3)})
    positions = hub._resized_positions(rows, donor, larger)
    np.testing.assert_array_equal(positions[:1], token)
    grid = positions[1:].reshape(8, 6, 8)
    np.testing.assert_allclose(grid[..., 2:], 1, rtol=1e-5)
    assert (np.diff(grid[:, :, 0], axis=0) > 0).all()  # rows are rows
    assert (np.diff(grid[:, :, 1], axis=1) > 0).all()
    np.testing.assert_allclose(grid[2:-2, 2:-2, 0], (np.arange(8)[2:-2, None] - 0.5) / 2 + np.zeros(2), atol=0.2)


def test_mixed_precision_is_kept_by_a_process_of_single_precision(preset, tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = built(preset, "EfficientNetBackbone")
        model.save(tmp_path / "model.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    again = read_model(tmp_path / "model.keras", "")
    for network in (model, again):
        assert {part.compute_dtype for part in network.get_layer("backbone")._flatten_layers()} == {"bfloat16"}
        assert {weight.dtype for weight in network.get_layer("backbone").weights} == {"float32"}
    np.testing.assert_array_equal(array(again(gray_images(32, 3))), array(model(gray_images(32, 3))))
    assert array(again(gray_images(32, 3))).dtype == np.float32


# ------------------------------------------------------------------------------------------------- what is refused


def test_without_keras_hub_it_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(IchError, match=r"a hub: backbone needs keras-hub \(.*\): pip install 'ich\[hub\]'"):
        backbones.build_model("hub:resnet_18_imagenet", (32, 32, 3))


def test_a_saved_model_names_the_extra_too(preset, monkeypatch, tmp_path):
    built(preset, "ResNetBackbone").save(tmp_path / "model.keras")
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(
        IchError, match=r"model.keras cannot be read: a hub: backbone needs .*pip install 'ich\[hub\]'$"
    ):
        read_model(tmp_path / "model.keras", "delete it")


def test_a_name_that_is_no_preset_is_refused(keras_hub):
    for name in ("resnet_51", "no/folder"):
        with pytest.raises(
            IchError, match=rf"hub:{name}: there is no such folder, and keras-hub .* has vit_base.* in all"
        ):
            backbones.build_model(f"hub:{name}", (32, 32, 3))


def test_a_preset_that_cannot_be_read_is_refused(preset, monkeypatch, keras_hub, tmp_path):
    with pytest.raises(IchError, match=r"the preset hub:.* cannot be read: .*config.json"):
        backbones.build_model(f"hub:{tmp_path}", (32, 32, 3))
    config = json.loads((preset("ResNetBackbone") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.weights.h5").write_bytes(b"junk")
    with pytest.raises(IchError, match=r"the preset hub:.* cannot be read: "):
        backbones.build_model(f"hub:{tmp_path}", (32, 32, 3), weights="imagenet")

    def refuse(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(keras_hub.models.Backbone, "from_preset", refuse)
    with pytest.raises(IchError, match=r"no route to host; download it elsewhere, .* set model.name to hub:FOLDER"):
        backbones.build_model("hub:resnet_18_imagenet", (32, 32, 3))


def test_another_family_is_refused(keras_hub, tmp_path):
    other = keras_hub.models.VGGBackbone(stackwise_num_repeats=[1], stackwise_num_filters=[4])
    other.save_to_preset(str(tmp_path))
    with pytest.raises(IchError, match=r"hub:.* is a VGGBackbone, expected one of ViTBackbone, .*, HGNetV2Backbone"):
        backbones.build_model(f"hub:{tmp_path}", (32, 32, 3))


def test_a_file_of_weights_is_refused():
    with pytest.raises(
        IchError, match=r"model.weights is a.h5, and a hub: backbone has the weights of its preset; set"
    ):
        backbones.build_model("hub:any", (32, 32, 3), weights="a.h5")


@pytest.mark.parametrize(
    ("family", "shape", "message"),
    [
        ("ViTBackbone", (18, 18, 3), r"multiples of 4, not 18 x 18; set preprocess.size to 16 or 20"),
        ("DINOV2Backbone", (2, 2, 3), r"multiples of 4, not 2 x 2; set preprocess.size to 4 or 8"),
        ("DINOV3Backbone", (16, 20, 3), r"takes square images, not 16 x 20; set preprocess.size"),
        ("SwinTransformerBackbone", (24, 24, 1), r"multiples of 16, not 24 x 24; set preprocess.size to 16 or 32"),
    ],
)
def test_images_that_do_not_fit_are_refused(preset, family, shape, message):
    with pytest.raises(IchError, match=message):
        backbones.build_model(f"hub:{preset(family)}", shape)


@pytest.mark.parametrize("family", [family for family in TINY if family not in WITH_DROP_PATH])
def test_a_family_without_stochastic_depth_refuses_it(preset, family):
    with pytest.raises(
        IchError, match=rf"model.drop_path is 0.1, and keras-hub's {family} has no stochastic depth; set"
    ):
        built(preset, family, weights=None, drop_path=0.1)


def test_tokens_take_no_gem_and_have_no_batch_normalization(preset):
    with pytest.raises(IchError, match=r"model.gem is 3, and hub:.* does not pool the mean of feature maps"):
        built(preset, "ViTBackbone", weights=None, gem=3)
    with pytest.raises(IchError, match=r"model.freeze_batch_norm is true, and hub:.* has no batch normalization"):
        built(preset, "DINOV3Backbone", weights=None, freeze_batch_norm=True)


def test_a_backbone_without_residual_blocks_refuses_stochastic_depth(keras_hub):
    settings = TINY["HGNetV2Backbone"] | {"stackwise_stage_filters": [(8, 4, 8, 1, 2, 3)], "image_shape": (32, 32, 3)}
    with pytest.raises(IchError, match=r"model.drop_path is 0.3, and this HGNetV2Backbone has no residual block"):
        hub.HubBackbone("HGNetV2Backbone", settings, drop_path=0.3)


def test_weights_of_another_shape_are_refused(preset, keras_hub):
    donor = keras_hub.models.ResNetBackbone(**TINY["ResNetBackbone"] | {"stackwise_num_filters": [64, 8]})
    ours = built(preset, "ResNetBackbone", weights=None).get_layer("backbone").backbone
    with pytest.raises(
        IchError, match=r"the weight .*kernel of hub:x has shape \(3, 3, 64, 8\), expected \(3, 3, 64, 4\)"
    ):
        hub._copy_weights(donor, ours, "x")


def test_every_block_that_is_dropped_is_found(preset):
    """Should keras-hub name its blocks otherwise, nothing would be dropped."""
    for family in ("DINOV2Backbone", "DINOV3Backbone", "HGNetV2Backbone"):
        layer = built(preset, family, weights=None, drop_path=0.5).get_layer("backbone")
        assert [drop.rate for drop in layer.drops] == adjustments.drop_rates(0.5, len(layer.drops))
        assert layer.drops[-1].rate == 0.5
