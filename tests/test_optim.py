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


def test_schedule_without_warmup_begins_at_its_peak_and_a_short_run_ends_in_its_warmup():
    np.testing.assert_allclose(optim.warmup_cosine(1.0, warmup_steps=0, steps=10)(0), 1.0)
    short = optim.warmup_cosine(1.0, warmup_steps=50, steps=20)
    np.testing.assert_allclose(short(20), 0.4)


def test_lars_scales_weights_by_the_trust_ratio_and_leaves_biases_alone():
    tx = optim.lars(lambda step: 2.0, weight_decay=0.1, momentum=0.9, trust_coefficient=0.01)
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
