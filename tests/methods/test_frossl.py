import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule


def make(**options):
    run = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    return METHODS["frossl"](models.create("resnet8", stages=(1,)), run, **{"projector": (16, 16, 4)} | options)


def test_loss_is_of_all_views_each_passed_by_itself():
    method = make(num_views=3, invariance=2.0)
    views = tuple(jax.random.normal(jax.random.key(0), (3, 8, 16, 16, 1)))
    params, state = method.init(jax.random.key(1), views[0])
    output = method.loss(params, state, {"views": views}, jax.random.key(2))
    z = []
    for x in views:
        for name, module in method.networks.items():
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        z.append(np.float64(x))
    np.testing.assert_allclose(output.embeddings, z, atol=1e-4)

    z = [view / np.linalg.norm(view, axis=0) for view in z]
    expected = 0.0
    for view in z:
        spectrum = np.linalg.svd(view, compute_uv=False) ** 2
        spectrum /= spectrum.sum()
        expected += np.log(np.sum(spectrum**2)) + 2.0 * 3 * 4 * np.mean((view - np.mean(z, axis=0)) ** 2)
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), state, output.state)
    assert all(jax.tree.leaves(changed))


def test_head_is_the_authors():
    params, _ = make().init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert [shapes[f"Dense_{i}"]["bias"] for i in range(3)] == [(16,), (16,), (4,)]
    assert shapes["Dense_2"]["kernel"] == (16, 4)
    assert "BatchNorm_1" in shapes and "BatchNorm_2" not in shapes


def test_chance_level_is_the_loss_of_equal_embeddings():
    np.testing.assert_allclose(losses.frossl(jnp.ones((2, 8, 4))), make().chance_level, atol=1e-5)


def test_refuses_one_view():
    with pytest.raises(ValueError, match="num_views must be at least 2, got 1"):
        make(num_views=1)
