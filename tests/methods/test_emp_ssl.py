import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule


def make(**options):
    run = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 16, 4), "num_patches": 3} | options
    return METHODS["emp_ssl"](models.create("resnet8", stages=(1,)), run, **options)


def test_loss_is_of_all_patches_passed_as_one_batch():
    method = make(eps=0.5, invariance=20.0)
    views = tuple(jax.random.normal(jax.random.key(0), (3, 8, 16, 16, 1)))
    params, state = method.init(jax.random.key(1), views[0])
    output = method.loss(params, state, {"views": views}, jax.random.key(2))
    x = jnp.concatenate(views)
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    z = np.float64(x).reshape(3, 8, 4)
    np.testing.assert_allclose(output.embeddings, z, atol=1e-4)

    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    mean = z.mean(0)
    mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
    rates = [0.5 * np.linalg.slogdet(np.eye(4) + 4 / (8 * 0.5) * view.T @ view)[1] for view in z]
    np.testing.assert_allclose(output.loss, -np.mean(rates) - 20.0 * np.mean(np.sum(z * mean, axis=-1)), rtol=1e-5)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, output.state)
    assert all(jax.tree.leaves(changed))


def test_views_and_head():
    method = make(num_patches=5)
    assert method.views == ("patch",) * 5
    params, _ = method.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert [shapes[f"Dense_{i}"]["bias"] for i in range(3)] == [(16,), (16,), (4,)]
    assert "BatchNorm_1" in shapes and "BatchNorm_2" not in shapes


def test_chance_level_is_the_loss_of_equal_embeddings():
    method = make(eps=0.5, invariance=20.0)
    loss = losses.emp_ssl(jnp.ones((3, 8, 4)), eps=0.5, invariance=20.0)
    np.testing.assert_allclose(loss, method.chance_level, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_patches": 1}, "num_patches must be at least 2, got 1"),
        ({"eps": 0.0}, "eps must be above 0, got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
