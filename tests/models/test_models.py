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
from flax.traverse_util import flatten_dict

from ssl_jax import load_backbone, models
from ssl_jax.weights import layouts, torch_axes, torch_name, torch_tensors
from tests.models import drawn

REFERENCES = Path(__file__).parents[1] / "references"
MADE = runpy.run_path(str(REFERENCES / "make_models.py"))
SLOW = {
    *("resnet34", "resnet101", "wide_resnet50_2", "resnext50_32x4d", "vit_small_patch16_224", "vit_base_patch16_224"),
    *("convnext_tiny", "convnextv2_tiny", "efficientnet_b2", "efficientnet_b4"),
    *("swin_base_patch4_window7_224", "swin_larger_size"),
}


def cases(features):
    """(family, key) of the cases with features, or of those whose tensors alone are compared."""
    return [
        pytest.param(family, key, marks=pytest.mark.slow if key in SLOW or not features else ())
        for family, found in MADE["CASES"].items()
        for key, case in found.items()
        if (case.size is not None) == features
    ]


@pytest.mark.parametrize("family, key", cases(features=True))
def test_features_equal_timms(family, key, tmp_path):
    case = MADE["CASES"][family][key]
    with np.load(REFERENCES / f"models_{family}.npz") as file:
        shapes, expected = json.loads(str(file[f"{key}/shapes"])), file[key]
    weights = {name: MADE["named_tensor"](name, tuple(shape), case.gain) for name, shape in shapes.items()}
    safetensors.numpy.save_file(weights, tmp_path / "weights.safetensors")
    model = models.create(case.name, **case.own) if case.own else case.name
    backbone = load_backbone(tmp_path / "weights.safetensors", model)
    images = MADE["images"](case.size, case.channels)
    if hasattr(backbone.model, "scan"):  # as a loop over its blocks: compiles faster, and is the same (test_vit.py)
        h = jax.jit(functools.partial(backbone.model.clone(scan=True).apply, train=True))(backbone.variables, images)
    else:
        h = backbone.features(images, normalized=True)
    np.testing.assert_allclose(h, expected, atol=1e-4)  # of values around 1; they agree to 1e-5 here
    back = layouts.timm_tensors(case.name, torch_tensors(backbone.variables))
    assert back.keys() == {name for name in weights if not name.endswith("num_batches_tracked")}
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor, weights[name], err_msg=name)


@pytest.mark.parametrize("family, key", cases(features=False))
def test_tensors_are_timms(family, key):
    case = MADE["CASES"][family][key]
    with np.load(REFERENCES / f"models_{family}.npz") as file:
        expected = json.loads(str(file[f"{key}/shapes"]))
    module = models.create(case.name)
    variables = jax.eval_shape(module.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32))
    found = {
        torch_name(path): [leaf.shape[axis] for axis in torch_axes(path, leaf.ndim)]
        for path, leaf in flatten_dict(variables).items()
    }
    assert found == {name: shape for name, shape in expected.items() if not name.endswith("num_batches_tracked")}


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
        ("swin_small_patch4_window7_224", {}, 768, 49_606_258 - 769_000 - 2 * 16 * 96),
        ("swin_large_patch4_window7_224", {}, 1536, 196_532_476 - 1_537_000 - 2 * 16 * 192),
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
    "name, options",
    [
        ("resnet8", {"stages": (1, 1)}),
        ("resnext50_32x4d", {"stages": (1,), "width": 0.5}),
        ("convnextv2_tiny", {"stages": (1, 1), "base_width": 16}),
        ("efficientnet_b0", {"stages": (1, 1)}),
        ("vit_tiny_patch16_224", {"depth": 1, "image_size": 32}),
        (
            "swin_tiny_patch4_window7_224",
            {"base_width": 32, "head_width": 8, "stages": (1, 2), "window": 3, "image_size": 32},
        ),
    ],
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
        ("mobilenet", {}, "choose from resnet8, resnet18"),
        ("resnet18", {"widht": 2}, "did you mean 'width'"),
        ("resnet18", {"stem": "tiny"}, "stem must be one of imagenet, deep, small, strided, got 'tiny'"),
        ("resnet18", {"width": 0.001}, "width=0.001 leaves no channel"),
        ("resnet18", {"batch_norm": "global"}, "batch_norm must be one of sync, local, grouped, layer, got 'global'"),
        ("resnet18", {"batch_norm": "grouped", "batch_norm_groups": 0}, "batch_norm_groups must be at least 1"),
        ("resnet18", {"dtype": "float16"}, "dtype must be one of float32, bfloat16, got 'float16'"),
        ("resnet18", {"groups": 2}, "groups=2 are of bottlenecks; set bottleneck=True"),
        ("resnext50_32x4d", {"width": 0.1}, "groups=32 does not divide the 12 channels"),
        ("convnext_atto", {"pool": "cls"}, "pool must be one of mean, norm_mean, got 'cls'"),
        ("convnext_atto", {"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ("efficientnet_b0", {"stages": (1,) * 8}, r"1 to 7 stages, got stages=\(1, 1, 1, 1, 1, 1, 1, 1\)"),
        ("vit_tiny_patch16_224", {"image_size": (224, 100)}, "224x100 pixels does not divide into patches of 16"),
        ("vit_tiny_patch16_224", {"pool": "max"}, "pool must be one of cls, mean, norm_mean, got 'max'"),
        (
            "vit_tiny_patch16_224",
            {"positions": "none"},
            "positions must be one of learned, sincos, relative, rope, got 'none'",
        ),
        ("vit_tiny_patch16_224", {"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ("vit_tiny_patch16_224", {"heads": 5}, "a multiple of 4 and of heads=5"),
        ("swin_tiny_patch4_window7_224", {"head_width": 36}, "base_width=96 must be a multiple of head_width=36"),
        ("swin_tiny_patch4_window7_224", {"image_size": 30}, "30x30 pixels does not divide into patches of 4"),
    ],
)
def test_impossible_models_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, **options)


def test_accumulating_gradients_is_refused_where_batch_norm_would_make_it_inexact():
    with pytest.raises(
        ValueError, match="resnet50 has no microbatch, because its BatchNorm normalizes over the whole batch"
    ):
        models.create("resnet50", microbatch=8)
    with pytest.raises(ValueError, match="convnext_tiny has no option 'microbatch'"):
        models.create("convnext_tiny", microbatch=8)
