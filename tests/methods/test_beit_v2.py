import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config, models
from ssl_jax.methods import METHODS, Schedule, Teacher, Tokenizer
from ssl_jax.methods.toolkit.tokenizers import TanhHead
from ssl_jax.models.blocks import Block
from ssl_jax.training import build, teachers
from tests.methods import drawn
from tests.methods.teachers import saved, saved_tokenizer

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
X, MASK = RNG.normal(size=(4, 12, 12, 1)).astype(np.float32), RNG.random((4, 9)) < 0.5  # 3 x 3 patches
CODES = RNG.normal(size=(7, 4)).astype(np.float32)
CODES /= np.linalg.norm(CODES, axis=1, keepdims=True)


@functools.cache
def tokenizer():
    vit = dict(dim=8, depth=1, heads=2, patch_size=4, image_size=12, pool="norm_mean")
    model = models.create("vit_tiny_patch16_224", **vit)
    encoder = Teacher(model, jax.device_get(model.init(jax.random.key(3), X[:1])), (2.0,), (0.5,))
    head = TanhHead(4).init(jax.random.key(4), jnp.zeros((1, 8)))["params"]
    return Tokenizer(encoder, jax.tree.map(lambda p: 10.0 * p, jax.device_get(head)), CODES)


def make(depth=3, positions="relative", **options):
    vit = dict(dim=16, depth=depth, heads=2, patch_size=4, image_size=12, positions=positions)
    backbone = models.create("vit_tiny_patch16_224", **vit)
    return METHODS["beit_v2"](backbone, RUN, **{"early_blocks": 2, "head_blocks": 2, "loaded": tokenizer(), **options})


@functools.cache
def step():
    """(params, output, tokens, the encoder's patches, logits, the last block's output, the aggregation's)"""
    method = make()
    params, state = drawn.draw(method, X[:1])
    state = {**state, **method.constants}

    @jax.jit
    def run(params, state, batch, rng):
        (x,), (mask,) = batch["views"], batch["masks"]
        output = method.loss(params, state, batch, rng)
        tokens = tokenizer().tokens(state["tokenizer"], x)
        seen = tokenizer().encoder.model.apply(state["tokenizer"]["encoder"], 2.0 * x + 0.5, method="tokens")
        logits, _ = method.predict(params, x, mask, rng, None)
        backbone = {"params": params["backbone"]}
        blocks = method.backbone.apply(backbone, x, mask=mask, mask_token=params["mask_token"], last_blocks=2)
        y = jnp.concatenate([blocks[:, 1, :1], blocks[:, 0, 1:]], axis=1)
        for number in (2, 3):
            block = Block(**method.backbone.block_options)
            y = block.apply(
                {"params": params["aggregator"][f"blocks_{number}"]}, y, None, None, method.bias(params["backbone"])
            )
        return output, tokens, seen[:, 1:], logits, blocks[:, 1], y

    return params, *jax.device_get(run(params, state, {"views": (X,), "masks": (MASK,)}, jax.random.key(2)))


def layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def test_tokens_are_the_nearest_codes_of_the_tokenizers_patches():
    _, _, tokens, seen, *_ = step()
    head = tokenizer().head
    hidden = np.tanh(seen @ head["hidden"]["kernel"] + head["hidden"]["bias"])
    z = hidden @ head["out"]["kernel"] + head["out"]["bias"]
    np.testing.assert_array_equal(tokens, np.argmax(z @ CODES.T, axis=-1))
    assert len(np.unique(tokens)) > 1


def test_the_aggregation_has_the_last_class_token_and_earlier_patches():
    params, _, _, _, logits, last, aggregated = step()
    for found, x in zip(logits, (last, aggregated), strict=True):
        h = layer_norm(x[:, 1:].astype(np.float64), params["backbone"]["norm"])
        np.testing.assert_allclose(found, h @ params["head"]["kernel"] + params["head"]["bias"], rtol=1e-3, atol=1e-3)


def test_loss_is_the_sum_of_both_cross_entropies_of_the_hidden_patches():
    _, output, tokens, _, logits, *_ = step()

    def cross_entropy(logits):
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0][MASK].mean()

    both = [cross_entropy(x.astype(np.float64)) for x in logits]
    np.testing.assert_allclose([output.metrics["patch_loss"], output.metrics["class_loss"]], both, rtol=1e-4)
    np.testing.assert_allclose(output.loss, sum(both), rtol=1e-4)


def test_branches_of_the_aggregation_begin_as_those_of_later_blocks():
    params, state = jax.device_get(make().init(jax.random.key(1), X[:1]))
    for number in (2, 3):
        largest = np.abs(params["aggregator"][f"blocks_{number}"]["mlp"]["fc2"]["kernel"]).max()
        np.testing.assert_allclose(largest, 0.02 / np.sqrt(2 * (number + 1)), rtol=0.1)
    assert set(state) == {"batch_stats", "tokenizer"}


def test_a_run_of_vqkd_is_a_tokenizer():
    found = config.get_config("beit_v2:tiny")
    found.method.tokenizer = str(saved_tokenizer())
    found = config.parse(found)
    loaded = teachers.tokenizer(found)
    assert loaded.codebook.shape == (24, 8)
    method = build.method(found, RUN)
    assert method.codes == 24
    images = jnp.array(np.random.default_rng(0).normal(size=(2, 28, 28, 1)).astype(np.float32))
    assert loaded.tokens(jax.device_put(loaded.constants), images).shape == (2, 16)


def test_another_run_is_no_tokenizer(tmp_path):
    found = config.get_config("beit_v2:tiny")
    for path, message in ((tmp_path, "holds no run"), (saved(), "holds no run")):
        found.method.tokenizer = str(path)
        with pytest.raises(config.ConfigError, match=f"{message}; give the directory of a run of vqkd"):
            teachers.tokenizer(config.parse(found))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loaded": None}, "say --config.method.tokenizer=PATH"),
        ({"early_blocks": 4}, r"early_blocks must be in 1\.\.model\.depth=3, got 4"),
        ({"positions": "rope"}, "has no rotated positions"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_patches_of_another_size_than_the_tokenizers_are_refused():
    images = np.zeros((1, 24, 24, 1), np.float32)
    method = METHODS["beit_v2"](
        models.create("vit_tiny_patch16_224", dim=16, depth=2, heads=2, patch_size=8, image_size=24),
        RUN,
        early_blocks=1,
        loaded=tokenizer(),
    )
    with pytest.raises(ValueError, match=r"\(6, 6\) tokens, and the backbone has \(3, 3\)"):
        jax.eval_shape(method.init, jax.random.key(0), images)
