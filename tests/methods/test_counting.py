import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.counting import _quarters
from tests.methods.drawn import draw

RUN = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)


def make():
    return METHODS["counting"](models.create("resnet8", stages=(1,)), RUN, width=5)


def test_quarters_are_the_four_row_by_row():
    image = np.arange(24, dtype=np.float32).reshape(1, 4, 6, 1)
    found = np.asarray(jax.jit(_quarters)(image))[0, ..., 0]
    np.testing.assert_array_equal(found[1], [[3, 4, 5], [9, 10, 11]])
    np.testing.assert_array_equal(found[2], [[12, 13, 14], [18, 19, 20]])
    with pytest.raises(ValueError, match="do not divide into quarters"):
        jax.eval_shape(_quarters, np.zeros((1, 5, 6, 1), np.float32))


def test_loss_compares_the_image_with_its_quarters_and_with_its_neighbor():
    method = make()

    @jax.jit
    def run(params, state, x, index, rng):
        loss = method.loss(params, state, {"views": (x,), "index": index}, rng).loss
        whole = method.shrink(jax.random.split(rng)[0], index, x)
        rows = jnp.concatenate([whole[:, None], _quarters(x)], axis=1).reshape(30, 8, 8, 1)
        for name, module in method.networks.items():
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            rows, _ = module.apply(variables, rows, train=True, mutable=["batch_stats"])
        counts = jnp.maximum(rows.reshape(6, 5, 5), 0)
        neighbors = counts[jnp.array([1, 0, 3, 2, 5, 4]), 0]
        return loss, losses.counting(counts[:, 0], counts[:, 1:], neighbors)

    x = np.random.default_rng(0).normal(size=(6, 16, 16, 1)).astype(np.float32)
    loss, expected = run(*draw(method, x[:1]), x, np.arange(6), jax.random.key(2))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_filters_are_drawn_by_the_images_index_and_keep_the_mean():
    image = np.random.default_rng(0).uniform(size=(1, 16, 16, 1)).astype(np.float32)
    shrink = jax.jit(make().shrink)
    made = np.asarray(shrink(jax.random.key(1), np.arange(60), np.broadcast_to(image, (60, 16, 16, 1))))
    assert made.shape == (60, 8, 8, 1) and len(np.unique(made.round(5), axis=0)) == 4
    np.testing.assert_allclose(made.mean(axis=(1, 2, 3)), image.mean(), atol=0.03)
