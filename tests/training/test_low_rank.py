"""Low-rank adaptation: config.lora_rank, and the method that it wraps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ssl_jax
from ssl_jax import data, dist, load_backbone, models, weights
from ssl_jax.config import ConfigError
from ssl_jax.dist import state as of_state
from ssl_jax.methods import Schedule
from ssl_jax.methods.supervised import Supervised
from ssl_jax.training.low_rank import LowRank
from ssl_jax.training.state import create_state, with_backbone
from ssl_jax.training.step import TrainStep

VIT = dict(name="vit_tiny_patch16_224", dim=16, depth=2, heads=2, patch_size=4, image_size=8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (32, 8, 8, 3)).astype(np.uint8)
RANK, ALPHA = 3, 6.0


def adapted(model=VIT):
    run = Schedule(batch_size=16, steps=10, steps_per_epoch=2, num_images=32, num_classes=2)
    return LowRank(Supervised(models.create(**model), run), RANK, ALPHA)


def started(method, *, moved=True):
    """(params, state) of a method; moved: B is not 0."""
    params, state = jax.jit(method.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    if moved:
        params = jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.arange(p.size).reshape(p.shape)), params)
    return params, state


def batch(rows=16):
    rng = np.random.default_rng(1)
    views = (jnp.asarray(rng.normal(0, 1, (rows, 8, 8, 3)), jnp.float32),)
    return {"views": views, "index": jnp.arange(rows), "label": jnp.arange(rows) % 2}


def terms(tree):
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree) if leaf.ndim == 2
    }


def test_the_kernels_of_attention_and_mlps_are_adapted_and_begin_as_they_were():
    method = adapted()
    params, state = started(method, moved=False)
    assert set(params) == {"classifier", "low_rank"}
    kernels = {f"['blocks_{i}']['{part}']['kernel']" for i in (0, 1) for part in
               ("attn']['qkv", "attn']['proj", "mlp']['fc1", "mlp']['fc2")}  # fmt: skip
    assert set(terms(params["low_rank"])) == {k + f"['lora_{x}']" for k in kernels for x in "ab"}
    assert params["low_rank"]["blocks_0"]["mlp"]["fc1"]["kernel"]["lora_a"].shape == (16, RANK)
    plain, _ = jax.jit(method.method.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    merged = method.backbone_variables(params, state)["params"]
    jax.tree.map(np.testing.assert_array_equal, merged, plain["backbone"])


def test_loss_and_gradient_are_those_of_the_whole_kernels():
    method = adapted()
    params, state = started(method)
    rows, rng = batch(), jax.random.key(2)
    frozen, got = state["frozen"]["backbone"], params["low_rank"]

    def whole(path):
        kernel, term = frozen, got
        for name in path:
            kernel, term = kernel[name], term[name]
        return kernel + ALPHA / RANK * np.asarray(term["lora_a"], np.float64) @ np.asarray(term["lora_b"], np.float64)

    backbone = jax.tree.map(lambda x: x, frozen)
    for i in (0, 1):
        for part in (("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")):
            path = (f"blocks_{i}", *part, "kernel")
            backbone[path[0]][path[1]][path[2]]["kernel"] = jnp.asarray(whole(path), jnp.float32)
    inner = {name: part for name, part in state.items() if name != "frozen"}
    reference = {"classifier": params["classifier"], "backbone": backbone}
    expected, of_kernels = jax.jit(jax.value_and_grad(lambda p: method.method.loss(p, inner, rows, rng).loss))(
        reference
    )
    loss, grads = jax.jit(jax.value_and_grad(lambda p: method.loss(p, state, rows, rng).loss))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    for i in (0, 1):
        kernel = of_kernels["backbone"][f"blocks_{i}"]["attn"]["qkv"]["kernel"]
        term, grad = (tree["low_rank"][f"blocks_{i}"]["attn"]["qkv"]["kernel"] for tree in (params, grads))
        np.testing.assert_allclose(grad["lora_a"], ALPHA / RANK * kernel @ term["lora_b"].T, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(grad["lora_b"], ALPHA / RANK * term["lora_a"].T @ kernel, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("devices, sharded", [(1, False), (8, False), (8, True)])
def test_one_device_eight_and_a_sharded_state_take_the_same_step(devices, sharded, monkeypatch):
    monkeypatch.setattr(of_state, "SHARDED_FROM", 1)
    method, tx = adapted(), optax.sgd(0.5)
    mesh = dist.Mesh(jax.devices()[:devices], (dist.AXIS,))
    variables = {"params": started(adapted(), moved=True)[1]["frozen"]["backbone"], "batch_stats": {}}

    def create(given):
        return with_backbone(create_state(method, tx, jnp.zeros((1, 8, 8, 3)), 0), given)

    state = dist.create_state(create, mesh, jax.tree.map(np.asarray, variables), shard_state=sharded)
    step = TrainStep(method=method, tx=tx, augment=lambda rng, rows: rows, axis_name=dist.AXIS, log_every=1)
    mapped = dist.map_step(step, mesh, shard_state=sharded)
    for _ in range(2):
        state, _ = mapped(state, dist.shard_batch(jax.tree.map(np.asarray, batch()), mesh))
    found = jax.device_get(dist.gather_state((state.params, state.model_state), mesh))
    expected_params, expected_state = _two_steps_by_hand(create(variables), method)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found[0], expected_params)
    jax.tree.map(np.testing.assert_array_equal, found[1]["frozen"], jax.device_get(expected_state["frozen"]))


def _two_steps_by_hand(state, method):
    params = state.params
    gradient = jax.jit(jax.grad(lambda p: method.loss(p, state.model_state, batch(), jax.random.key(0)).loss))
    for _ in range(2):
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient(params))
    return jax.device_get(params), state.model_state


def test_a_network_without_such_kernels_is_refused():
    method = adapted(dict(name="resnet8", stages=(1,), base_width=8))
    with pytest.raises(ConfigError, match=r"lora_rank=3 adapts kernels of attention and MLPs, and this backbone has"):
        method.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def config(begin):
    found = ssl_jax.get_config("simclr:tiny")
    found.update(begin=begin, batch_size=16, steps=3, log_every=1, checkpoint_every=1, evaluate_every=0)
    found.update(lora_rank=RANK)
    found.data.update(image_size=(8, 8), channels=3, dtype="uint8", mean=MEAN, std=STD)
    found.augment.view.update(size=(8, 8), jitter=0.0)
    found.method.projector = (4,)
    found.model = VIT
    return found


def test_weights_to_begin_with_are_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"config.lora_rank=3 adapts weights that a run begins with, and there are"):
        ssl_jax.pretrain(config(""), data.arrays(IMAGES), workdir=tmp_path / "run")


@pytest.mark.slow
def test_the_kept_backbone_differs_from_the_given_one_by_products_of_that_rank(tmp_path):
    module = models.create(**VIT)
    variables = jax.tree.map(np.asarray, module.init(jax.random.key(3), jnp.zeros((1, 8, 8, 3))))
    meta = dict(model=VIT, image_size=[8, 8], channels=3, mean=MEAN, std=STD)
    weights.save_backbone(tmp_path, variables, meta)
    before = load_backbone(tmp_path).variables["params"]
    unbroken = ssl_jax.pretrain(config(str(tmp_path)), data.arrays(IMAGES), workdir=tmp_path / "run").backbone
    difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), unbroken.variables["params"], before)
    for name, part in jax.tree_util.tree_leaves_with_path(difference):
        adapted_leaf = any(getattr(key, "key", "") in ("attn", "mlp") for key in name) and part.ndim == 2
        rank = np.linalg.matrix_rank(part.astype(np.float64), tol=1e-7) if part.ndim == 2 else int(np.any(part != 0))
        assert rank == (RANK if adapted_leaf else 0), name
