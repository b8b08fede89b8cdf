"""Every architecture against torchvision's and timm's, with the same weights; and what `create` makes and refuses."""

import functools
import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from ssl_jax import load_backbone, models
from tests.models import drawn

REFERENCES = Path(__file__).parents[1] / "references"
MADE = runpy.run_path(str(REFERENCES / "make_models.py"))


@pytest.mark.parametrize(
    "key, model, size, channels",
    [
        ("resnet18", "resnet18", (65, 96), 3),
        pytest.param("resnet34", "resnet34", (65, 96), 3, marks=pytest.mark.slow),
        ("resnet50", "resnet50", (65, 96), 3),
        pytest.param("resnet101", "resnet101", (65, 96), 3, marks=pytest.mark.slow),
        ("vit_tiny_patch16_224", "vit_tiny_patch16_224", (224, 224), 3),
        pytest.param("vit_small_patch16_224", "vit_small_patch16_224", (224, 224), 3, marks=pytest.mark.slow),
        pytest.param("vit_base_patch16_224", "vit_base_patch16_224", (224, 224), 3, marks=pytest.mark.slow),
        ("vit_mean", "vit_tiny_patch16_224", (224, 224), 3),
        ("vit_patch4_gray", "vit_tiny_patch16_224", (32, 32), 1),
        ("vit_other_size", "vit_tiny_patch16_224", (160, 256), 3),  # positions made for 224 x 224
    ],
)
def test_features_equal_torchs(key, model, size, channels, tmp_path):
    with np.load(REFERENCES / "models.npz") as file:
        shapes, expected = json.loads(str(file[f"{key}/shapes"])), file[key]
    weights = {name: MADE["named_tensor"](name, tuple(shape)) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, tmp_path / "weights.safetensors")
    backbone = load_backbone(tmp_path / "weights.safetensors", model)
    images = MADE["images"](size, channels)
    if key == model:
        h = backbone.features(images, normalized=True)
    else:  # other options of a ViT: as a loop over its blocks, which compiles faster and is the same (test_vit.py)
        h = jax.jit(functools.partial(backbone.model.clone(scan=True).apply, train=True))(backbone.variables, images)
    np.testing.assert_allclose(h, expected, atol=1e-4)  # of values around 1; they agree to 1e-5 here


@pytest.mark.parametrize(
    "name, options, dim, parameters",
    [
        # As torchvision and timm count them, less the classifier and, in the stem, two channels of three.
        ("resnet8", {}, 64, 77_104),
        ("resnet8", {"width": 2.0}, 128, 306_784),
        ("resnet18", {"stem": "small"}, 512, 11_689_512 - 513_000 - 49 * 3 * 64 + 9 * 64),
        ("resnet50", {}, 2048, 25_557_032 - 2_049_000 - 2 * 49 * 64),
        ("resnet50", {"width": 0.5, "stages": (1, 1, 1, 1)}, 1024, None),
        ("vit_tiny_patch16_224", {}, 192, 5_717_416 - 193_000 - 2 * 256 * 192),
    ],
)
def test_sizes(name, options, dim, parameters):
    module = models.create(name, **options)
    images = jnp.zeros((2, 32, 48, 1))
    h, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), images)
    assert h.shape == (2, dim)
    assert module.dim == dim
    assert h.dtype == jnp.float32
    if parameters:
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == parameters


@pytest.mark.parametrize(
    "name, options", [("resnet8", {"stages": (1, 1)}), ("vit_tiny_patch16_224", {"depth": 1, "image_size": 32})]
)
def test_bfloat16_computes_nearly_the_same(name, options):
    images = MADE["images"]((32, 32), 1)
    exact, half = (models.create(name, dtype=dtype, **options) for dtype in ("float32", "bfloat16"))
    h, rounded = jax.device_get(
        jax.jit(lambda v, x: (exact.apply(v, x), half.apply(v, x)))(drawn.variables_of(exact, images), images)
    )
    assert rounded.dtype == jnp.float32
    error = np.linalg.norm(rounded - h) / np.linalg.norm(h)
    assert 1e-5 < error < 0.02  # bfloat16 has 8 bits


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("resnet19", {}, "no model 'resnet19'; did you mean 'resnet1"),
        ("efficientnet", {}, "there are resnet8, resnet18"),
        ("resnet18", {"widht": 2}, "did you mean 'width'"),
        ("resnet18", {"stem": "tiny"}, "stem must be one of imagenet, small, strided, got 'tiny'"),
        ("resnet18", {"width": 0.001}, "width=0.001 leaves no channel"),
        ("resnet18", {"batch_norm": "global"}, "batch_norm must be one of sync, local, grouped, layer, got 'global'"),
        ("resnet18", {"batch_norm": "grouped", "batch_norm_groups": 0}, "batch_norm_groups must be at least 1"),
        ("resnet18", {"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
        ("vit_tiny_patch16_224", {"image_size": (224, 100)}, "224x100 pixels does not divide into patches of 16"),
        ("vit_tiny_patch16_224", {"pool": "max"}, "pool must be one of cls, mean, norm_mean, got 'max'"),
        (
            "vit_tiny_patch16_224",
            {"positions": "none"},
            "positions must be one of learned, sincos, relative, got 'none'",
        ),
        ("vit_tiny_patch16_224", {"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ("vit_tiny_patch16_224", {"heads": 5}, "a multiple of 4 and of heads=5"),
    ],
)
def test_impossible_models_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


def test_accumulating_gradients_is_refused_where_batch_norm_would_make_it_inexact():
    with pytest.raises(ValueError, match="resnet50 has no microbatch: its BatchNorm normalizes by the whole batch"):
        models.create("resnet50", microbatch=8)
