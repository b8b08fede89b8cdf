import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.models import maps
from tests.models import drawn

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 4, 1)).astype(np.float32)
SMALL = {"dim": 12, "heads": 3, "depth": 2, "patch_size": 2, "image_size": (8, 4)}


def vit(**options):
    return models.create("vit_tiny_patch16_224", **{**SMALL, **options})


def test_a_vits_map_has_each_patch_in_its_place():
    module = vit(depth=1)
    variables = drawn.variables_of(module, IMAGES)
    for branch, last in (("attn", "proj"), ("mlp", "fc2")):  # blocks add nothing: a patch's features are its pixels'
        for leaf in variables["params"]["blocks_0"][branch][last].values():
            leaf[:] = 0.0
    patch_map = jax.jit(lambda images: maps.patch_map(module, variables, images))
    before = np.asarray(patch_map(IMAGES))
    assert before.shape == (3, 4, 2, 12)
    for row, column in ((0, 0), (2, 1), (3, 0)):
        changed = IMAGES.copy()
        changed[:, 2 * row, 2 * column + 1] += 1.0
        differs = np.any(np.abs(np.asarray(patch_map(changed)) - before) > 1e-4, axis=(0, 3))
        assert np.argwhere(differs).tolist() == [[row, column]]


@pytest.mark.parametrize(
    "module",
    [
        models.create("resnet8", stages=(1,)),
        vit(pool="norm_mean"),
        vit(pool="norm_mean", class_token=False),
        models.create("convnext_atto", stages=(1, 1), base_width=4, patch_size=1, pool="norm_mean"),
        models.create("efficientnet_b0", stages=(1, 1), width=0.1),
    ],
)
def test_the_mean_of_the_map_is_the_pooled_feature(module):
    variables = drawn.variables_of(module, IMAGES)
    found, expected = jax.jit(lambda v, x: (maps.patch_map(module, v, x), module.apply(v, x)))(variables, IMAGES)
    np.testing.assert_allclose(np.asarray(found).mean(axis=(1, 2)), expected, rtol=1e-4, atol=1e-5)


def test_features_of_blocks_are_those_of_shallower_models():
    chosen = [(2, "cls"), (2, "mean"), (2, "cls_and_mean"), (1, "cls")]

    @jax.jit
    def run(variables, images):
        ends = {
            pool: [vit(pool=pool, depth=depth).apply(variables, images) for depth in (1, 2)]
            for pool in ("cls", "norm_mean")
        }
        found = [maps.block_features(vit(), variables, images, blocks=blocks, pool=pool) for blocks, pool in chosen]
        raw = [
            maps.block_features(vit(pool=pool), variables, images, blocks=1, pool="cls", norm=False)
            for pool in ("cls", "mean")
        ]
        return ends, dict(zip(chosen, found, strict=True)), raw

    variables = drawn.variables_of(vit(), IMAGES)
    ends, found, (raw, raw_of_mean) = jax.device_get(run(variables, IMAGES))
    expected = {
        "cls": ends["cls"],
        "mean": ends["norm_mean"],
        "cls_and_mean": [*ends["cls"], ends["norm_mean"][1]],
    }
    for pool, parts in expected.items():
        np.testing.assert_allclose(found[2, pool], np.concatenate(parts, axis=1), rtol=1e-4, atol=1e-5)
    last = found[1, "cls"]
    np.testing.assert_allclose(last, ends["cls"][1], rtol=1e-4, atol=1e-5)
    normed = (raw - raw.mean(axis=1, keepdims=True)) / np.sqrt(raw.var(axis=1, keepdims=True) + 1e-6)
    norm = variables["params"]["norm"]
    np.testing.assert_allclose(normed * norm["scale"] + norm["bias"], last, rtol=1e-4, atol=1e-5)
    assert raw.shape == raw_of_mean.shape == last.shape


@pytest.mark.parametrize("positions", ["learned", "relative"])
def test_class_attention_is_the_softmax_of_its_querys_products_with_the_keys(positions):
    module = vit(positions=positions)
    variables = drawn.variables_of(module, IMAGES)
    blocks, attention = jax.device_get(
        jax.jit(lambda v, x: (module.apply(v, x, last_blocks=2), maps.class_attention(module, v, x)))(variables, IMAGES)
    )
    block = jax.tree.map(np.float64, variables["params"]["blocks_1"])
    x = blocks[:, 0].astype(np.float64)  # what enters the last block
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * block["norm1"]["scale"] + block["norm1"]["bias"]
    qkv = x @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
    table = variables["params"].get("rel_pos_bias", {}).get("relative_position_bias_table")
    for head in range(3):
        query, keys = qkv[:, 0, 4 * head : 4 * head + 4], qkv[:, :, 12 + 4 * head : 16 + 4 * head]
        logits = np.einsum("bd,bkd->bk", query, keys) / 2
        if table is not None:  # its last three rows: the class token to a patch, a patch to it, it to itself
            logits += np.array([table[-1, head], *[table[-3, head]] * 8])
        expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(attention[:, head], expected[:, 1:].reshape(3, 4, 2), rtol=1e-3, atol=1e-5)


class NoMap(nn.Module):
    dim: int = 1

    @nn.compact
    def __call__(self, images, train=False, axis_name=None):
        return nn.Dense(self.dim)(images.reshape(len(images), -1))


@pytest.mark.parametrize(
    "function, module, message",
    [
        (maps.patch_map, NoMap(), "NoMap has no feature map; give it a method feature_map"),
        (maps.patch_map, vit(pool="mean"), "has no LayerNorm for single tokens"),
        (maps.class_attention, models.create("resnet8"), "ResNet has no blocks of tokens; use a ViT"),
        (maps.class_attention, vit(class_token=False, pool="norm_mean"), "no class token"),
        (functools.partial(maps.block_features, blocks=3, pool="cls"), vit(), r"blocks must be in 1\.\.2.*got 3"),
        (functools.partial(maps.block_features, blocks=0, pool="cls"), vit(), r"blocks must be in 1\.\.2.*got 0"),
        (functools.partial(maps.block_features, blocks=1, pool="max"), vit(), "max"),
        (functools.partial(maps.block_features, blocks=1, pool="mean"), vit(pool="mean"), "no LayerNorm for single"),
        (
            functools.partial(maps.block_features, blocks=1, pool="cls_and_mean"),
            vit(class_token=False, pool="norm_mean"),
            'no class token; use pool="mean"',
        ),
    ],
)
def test_what_a_model_has_not_is_refused(function, module, message):
    with pytest.raises(ValueError, match=message):
        function(module, jax.eval_shape(module.init, jax.random.key(0), IMAGES), jnp.asarray(IMAGES))


@pytest.mark.parametrize(
    "module, patch_map, class_attention",
    [
        (vit(), True, True),
        (vit(class_token=False, pool="norm_mean"), True, False),
        (vit(pool="mean"), False, True),
        (models.create("resnet8", stages=(1,)), True, False),
        (NoMap(), False, False),
    ],
)
def test_what_a_model_has_is_known_beforehand(module, patch_map, class_attention):
    variables = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    for told, function, has in (
        (maps.has_patch_map, maps.patch_map, patch_map),
        (maps.has_class_attention, maps.class_attention, class_attention),
    ):
        assert told(module) is has
        if has:
            assert len(jax.eval_shape(functools.partial(function, module), variables, IMAGES).shape) == 4
