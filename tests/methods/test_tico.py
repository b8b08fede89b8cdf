import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

SCHEDULE = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 6), **options}
    return METHODS["tico"](models.create("resnet8", stages=(1,)), SCHEDULE, **options)


def start(method):
    """With a teacher that is not the online network, and some past."""
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1))
    params, state = method.init(jax.random.key(1), x1[:1])
    state["teacher"]["params"] = method.init(jax.random.key(2), x1[:1])[0]
    state["covariance"] = jnp.diag(jnp.arange(6.0)) / 15
    return params, state, (x1, x2)


def projection(method, params, batch_stats, x):
    for name, module in method.networks.items():
        x, _ = module.apply(
            {"params": params[name], "batch_stats": batch_stats[name]}, x, train=True, mutable=["batch_stats"]
        )
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def one_direction(z, t, past, beta=0.9, rho=8.0):
    c = beta * past + (1 - beta) * z.T @ z / len(z)
    return 1 - np.mean(np.sum(z * t, 1)) + rho * np.mean([row @ c @ row for row in z]), c


def test_one_direction_is_the_papers_loss_and_keeps_the_second_moment():
    method = make(rho=3.0, beta=0.7)
    params, state, (x1, x2) = start(method)
    z = np.asarray(projection(method, params, state["batch_stats"], x1), np.float64)
    t = np.asarray(projection(method, state["teacher"]["params"], state["teacher"]["batch_stats"], x2), np.float64)
    expected, c = one_direction(z, t, np.asarray(state["covariance"]), beta=0.7, rho=3.0)
    output = method.loss(params, state, {"views": (x1, x2)}, jax.random.key(2))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(output.state["covariance"], c, rtol=1e-4, atol=1e-6)
    assert output.embeddings.shape == (2, 8, 6)


def test_symmetric_goes_on_from_the_second_moment_of_the_first_direction():
    method = make(symmetric=True)
    params, state, (x1, x2) = start(method)
    z1, z2 = (np.asarray(projection(method, params, state["batch_stats"], x)) for x in (x1, x2))
    teacher = state["teacher"]
    t1, t2 = (np.asarray(projection(method, teacher["params"], teacher["batch_stats"], x)) for x in (x1, x2))
    first, c = one_direction(z1, t2, np.asarray(state["covariance"]))
    second, c = one_direction(z2, t1, c)
    output = method.loss(params, state, {"views": (x1, x2)}, jax.random.key(2))
    np.testing.assert_allclose(output.loss, (first + second) / 2, rtol=1e-5)
    np.testing.assert_allclose(output.state["covariance"], c, rtol=1e-4, atol=1e-6)


def test_starts_as_its_teacher_with_no_past():
    method = make()
    params, state = method.init(jax.random.key(1), jnp.zeros((1, 16, 16, 1)))
    jax.tree.map(np.testing.assert_array_equal, state["teacher"]["params"], params)
    np.testing.assert_array_equal(state["covariance"], np.zeros((6, 6)))


@pytest.mark.parametrize("step, decay", [(0, 0.99), (50, 0.995), (100, 1.0)])
def test_teacher_decay_goes_to_one(step, decay):
    method = make()
    params, state, _ = start(method)
    moved = jax.jit(method.update)(params, state, step)["teacher"]["params"]
    jax.tree.map(
        lambda m, t, p: np.testing.assert_allclose(m, decay * t + (1 - decay) * p, rtol=1e-4, atol=1e-6),
        moved,
        state["teacher"]["params"],
        params,
    )


def test_chance_level_is_the_loss_of_equal_embeddings_for_long():
    z = jnp.ones((8, 6))
    direction = jnp.full((6, 6), 1 / 6)  # what the second moment has become
    loss, _ = losses.tico(z, z, direction, rho=3.0)
    np.testing.assert_allclose(make(rho=3.0).chance_level, loss, rtol=1e-5)


@pytest.mark.parametrize("name, value", [("rho", 0.0), ("beta", 1.5), ("decay", -0.1)])
def test_refusals(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .* got {value}"):
        make(**{name: value})
