import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import optim

PARAMS = {"kernel": jnp.array([[3.0, 0.0], [0.0, 4.0]]), "bias": jnp.array([2.0, 0.0])}
GRADS = {"kernel": jnp.array([[0.0, 0.5], [0.0, 0.0]]), "bias": jnp.array([0.25, 0.0])}


@pytest.mark.parametrize("step, expected", [(0, 0.0), (5, 0.5), (10, 1.0), (60, 0.55), (110, 0.1), (200, 0.1)])
def test_warmup_cosine(step, expected):
    schedule = optim.warmup_cosine(1.0, warmup_steps=10, steps=110, final_lr=0.1)
    np.testing.assert_allclose(schedule(step), expected, atol=1e-6)


def test_warmup_may_begin_above_zero_and_bends_nothing_after_it():
    schedule, usual = (optim.warmup_cosine(1.0, warmup_steps=10, steps=110, first_lr=first) for first in (0.2, 0.0))
    np.testing.assert_allclose([schedule(0), schedule(5), schedule(10)], [0.2, 0.6, 1.0], atol=1e-6)
    np.testing.assert_allclose(schedule(60), usual(60))


def test_a_warmup_from_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"first_lr must be at least 0, got -0.1"):
        optim.create("adamw", lr=0.1, warmup_steps=10, steps=100, first_lr=-0.1)


def test_schedule_without_warmup_begins_at_its_peak_and_a_short_run_ends_in_its_warmup():
    np.testing.assert_allclose(optim.warmup_cosine(1.0, warmup_steps=0, steps=10)(0), 1.0)
    short = optim.warmup_cosine(1.0, warmup_steps=50, steps=20)
    np.testing.assert_allclose(short(20), 0.4)


def test_lars_scales_weights_by_the_trust_ratio_and_leaves_biases_alone():
    tx = optim.lars(lambda step: 2.0, weight_decay=0.1, momentum=0.9, trust_coefficient=0.01, lr_in_momentum=True)
    state = tx.init(PARAMS)
    updates, state = tx.update(GRADS, state, PARAMS)
    g = np.array(GRADS["kernel"]) + 0.1 * np.array(PARAMS["kernel"])
    first = -2.0 * 0.01 * 5.0 / np.linalg.norm(g) * g  # |kernel| = 5
    np.testing.assert_allclose(updates["kernel"], first, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -2.0 * np.array(GRADS["bias"]), rtol=1e-6)
    updates, _ = tx.update(GRADS, state, PARAMS)  # the learning rate is inside of what the momentum accumulates
    np.testing.assert_allclose(updates["kernel"], 1.9 * first, rtol=1e-5)


def test_adamw_decays_weights_only():
    tx = optim.adamw(lambda step: 0.1, weight_decay=0.5)
    zero = {name: jnp.zeros_like(value) for name, value in PARAMS.items()}
    updates, _ = tx.update(zero, tx.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["kernel"], -0.1 * 0.5 * np.array(PARAMS["kernel"]), rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], 0.0, atol=0)


def test_sgd_decays_everything_as_torch_does():
    tx = optim.sgd(lambda step: 0.1, weight_decay=0.5, momentum=0.9)
    params, state = PARAMS, tx.init(PARAMS)
    buffer = np.zeros(2)
    expected = np.array(PARAMS["bias"])
    for _ in range(3):
        updates, state = tx.update(GRADS, state, params)
        params = optax.apply_updates(params, updates)
        buffer = 0.9 * buffer + np.array(GRADS["bias"]) + 0.5 * expected
        expected = expected - 0.1 * buffer
    np.testing.assert_allclose(params["bias"], expected, rtol=1e-6)


def test_sgd_with_exclude_vectors_decays_weights_only():
    tx = optim.sgd(lambda step: 0.1, weight_decay=0.5, exclude_vectors=True)
    updates, _ = tx.update(GRADS, tx.init(PARAMS), PARAMS)
    kernel = np.array(GRADS["kernel"]) + 0.5 * np.array(PARAMS["kernel"])
    np.testing.assert_allclose(updates["kernel"], -0.1 * kernel, rtol=1e-6)
    np.testing.assert_allclose(updates["bias"], -0.1 * np.array(GRADS["bias"]), rtol=1e-6)


def run(tx, steps, grads=GRADS, params=PARAMS):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_lars_with_the_rate_after_the_momentum_as_barlow_twins_code():
    schedule = lambda step: jnp.asarray([2.0, 0.5])[step]  # noqa: E731  only a changing rate tells the two apart
    params = run(optim.lars(schedule, weight_decay=0.1, trust_coefficient=0.01, vector_lr_scale=0.25), 2)
    p, velocity = np.array(PARAMS["kernel"]), np.zeros((2, 2))
    bias, bias_velocity = np.array(PARAMS["bias"]), np.zeros(2)
    for lr in (2.0, 0.5):
        g = np.array(GRADS["kernel"]) + 0.1 * p
        velocity = 0.9 * velocity + g * 0.01 * np.linalg.norm(p) / np.linalg.norm(g)
        bias_velocity = 0.9 * bias_velocity + np.array(GRADS["bias"])
        p, bias = p - lr * velocity, bias - 0.25 * lr * bias_velocity
    np.testing.assert_allclose(params["kernel"], p, rtol=1e-5)
    np.testing.assert_allclose(params["bias"], bias, rtol=1e-5)


def test_larc_adapts_and_decays_every_leaf():
    params = run(optim.lars(lambda _: 1.0, weight_decay=0.1, trust_coefficient=0.01, exclude_vectors=False), 1)
    g = np.array(GRADS["bias"]) + 0.1 * np.array(PARAMS["bias"])
    np.testing.assert_allclose(params["bias"], np.array(PARAMS["bias"]) - 0.01 * 2.0 * g / np.linalg.norm(g), rtol=1e-5)


def create(**options):
    return optim.create("sgd", **{"lr": 0.1, "warmup_steps": 0, "steps": 10, "momentum": 0.0, **options})[0]


def test_a_frozen_leaf_does_not_move_nor_gather_momentum():
    tx = create(frozen_steps={"ker": 2}, weight_decay=0.5, momentum=0.9, final_lr=0.1)
    np.testing.assert_array_equal(run(tx, 2)["kernel"], PARAMS["kernel"])
    assert not np.array_equal(run(tx, 2)["bias"], PARAMS["bias"])
    free = run(create(weight_decay=0.5, momentum=0.9, final_lr=0.1), 1)
    np.testing.assert_allclose(run(tx, 3)["kernel"], free["kernel"], rtol=1e-6)  # its third step is like a first


def test_a_constant_rate_for_some_leaves():
    moved = run(create(constant_lr=("bias",)), 10)
    np.testing.assert_allclose(moved["bias"], np.array(PARAMS["bias"]) - 10 * 0.1 * np.array(GRADS["bias"]), rtol=1e-5)
    mean_rate = np.mean([0.05 * (1 + np.cos(np.pi * t / 10)) for t in range(10)])
    expected = np.array(PARAMS["kernel"]) - 10 * mean_rate * np.array(GRADS["kernel"])
    np.testing.assert_allclose(moved["kernel"], expected, rtol=1e-5)


def test_clipping_of_the_whole_gradient_and_of_each_leaf():
    moved = run(create(clip_norm=0.1, final_lr=0.1), 1)
    norm = np.sqrt(0.5**2 + 0.25**2)
    np.testing.assert_allclose(moved["bias"][0], 2.0 - 0.1 * 0.25 * 0.1 / norm, rtol=1e-6)
    moved = run(create(clip_each=0.3, final_lr=0.1), 1)
    np.testing.assert_allclose(moved["bias"][0], 2.0 - 0.1 * 0.25, rtol=1e-6)  # below the limit
    np.testing.assert_allclose(moved["kernel"][0, 1], -0.1 * 0.3, rtol=1e-6)


def test_weight_decay_goes_by_a_cosine_to_its_last_value():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = create(weight_decay=0.2, final_weight_decay=0.6, final_lr=0.1)
    decays = [0.6 - 0.4 * 0.5 * (1 + np.cos(np.pi * t / 10)) for t in range(4)]
    np.testing.assert_allclose(run(tx, 4, zero)["bias"][0], 2.0 * np.prod([1 - 0.1 * d for d in decays]), rtol=1e-5)


def test_layer_decay_scales_a_vits_blocks():
    names = ("patch_embed", "blocks_0", "blocks_1", "norm")
    params = {"backbone": {name: {"w": jnp.ones(1)} for name in names}}
    moved = run(create(layer_decay=0.5, depth=2, final_lr=0.1), 1, params, params)["backbone"]
    steps = [float(1.0 - moved[name]["w"][0]) for name in names]
    np.testing.assert_allclose(steps, [0.1 / 8, 0.1 / 4, 0.1 / 2, 0.1], rtol=1e-5)


@pytest.mark.parametrize("options", [{"clip_norm": 0.0}, {"clip_each": -1.0}, {"layer_decay": 0.0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        create(**options)


def test_schedules_of_other_numbers():
    np.testing.assert_allclose([optim.cosine(0.9, 1.0, t, 100) for t in (0, 50, 100, 150)], [0.9, 0.95, 1.0, 1.0])
    np.testing.assert_allclose([optim.linear(0.04, 0.07, t, 30) for t in (0, 10, 30, 99)], [0.04, 0.05, 0.07, 0.07])
    np.testing.assert_allclose(optim.linear(0.04, 0.07, 0, 0), 0.07)


def test_ema():
    np.testing.assert_allclose(optim.ema({"a": jnp.ones(2)}, {"a": jnp.zeros(2)}, 0.75)["a"], 0.75)


def test_patch_embedding_has_a_learning_rate_of_its_own():
    params = {"backbone": {"patch_embed": {"proj": {"kernel": jnp.ones((2, 2))}}, "norm": {"scale": jnp.ones(2)}}}
    tx, _ = optim.create("sgd", lr=0.5, warmup_steps=0, steps=10, patch_embed_lr_scale=0.2)
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["backbone"]["patch_embed"]["proj"]["kernel"], -0.1)
    np.testing.assert_allclose(updates["backbone"]["norm"]["scale"], -0.5)


def test_stretched_schedule_ends_before_the_bottom():
    _, schedule = optim.create("sgd", lr=1.0, warmup_steps=0, steps=80, schedule_stretch=1.25)
    np.testing.assert_allclose(schedule(50), 0.5, rtol=1e-6)  # half of 100
    np.testing.assert_allclose(schedule(80), 0.5 * (1 + np.cos(np.pi * 0.8)), rtol=1e-5)
    with pytest.raises(ValueError, match=r"schedule_stretch must be at least 1, got 0.8"):
        optim.create("sgd", lr=1.0, warmup_steps=0, steps=80, schedule_stretch=0.8)


@pytest.mark.parametrize("lr, ratio", [(2.0, None), (0.001, 0.001)])
def test_lars_clipped_is_sgd_whose_steps_are_capped(lr, ratio):
    """At a large rate the trust ratio decides, at a small one the rate."""
    params = run(optim.lars(lambda _: lr, weight_decay=0.0, trust_coefficient=0.01, clip=True), 1)
    g = np.array(GRADS["kernel"])
    ratio = ratio or 0.01 * 5.0 / np.linalg.norm(g)
    np.testing.assert_allclose(params["kernel"], np.array(PARAMS["kernel"]) - ratio * g, rtol=1e-5)
    np.testing.assert_allclose(params["bias"], np.array(PARAMS["bias"]) - lr * np.array(GRADS["bias"]), rtol=1e-5)
