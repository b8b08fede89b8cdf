import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.exemplar import turn

RUN = Schedule(batch_size=4, steps=100, steps_per_epoch=10, num_images=60)


def test_the_class_is_the_images_index():
    method = METHODS["exemplar"](models.create("resnet8", stages=(1,), width=2.0), RUN, rotate=0.0)
    x = jax.random.normal(jax.random.key(0), (4, 12, 12, 1))
    params, state = method.init(jax.random.key(1), x[:1])
    index = jnp.array([7, 59, 0, 3])
    loss = method.loss(params, state, {"views": (x,), "index": index}, jax.random.key(2)).loss
    h = x
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        h, _ = module.apply(variables, h, train=True, mutable=["batch_stats"])
    assert h.shape == (4, 60)
    np.testing.assert_allclose(loss, losses.classification(h, index), rtol=1e-4)


def test_turning_keeps_the_middle_and_moves_what_is_off_it_by_up_to_the_angle():
    # A bright spot above the middle: its direction from there shows the angle.
    x = jnp.zeros((200, 21, 21, 1)).at[:, 10, 10].set(1.0).at[:, 2, 10].set(1.0)
    made = np.asarray(turn(jax.random.key(0), jnp.arange(200), x, 40.0))[..., 0]
    np.testing.assert_allclose(made[:, 10, 10], 1.0, atol=1e-5)
    rows, columns = np.meshgrid(np.arange(21) - 10, np.arange(21) - 10, indexing="ij")
    spot = made * (rows**2 + columns**2 > 25)
    total = spot.sum(axis=(1, 2))
    angle = np.degrees(np.arctan2((spot * columns).sum((1, 2)) / total, -(spot * rows).sum((1, 2)) / total))
    assert angle.min() < -35 and angle.max() > 35 and np.abs(angle).max() < 42
    np.testing.assert_array_equal(turn(jax.random.key(0), jnp.arange(200), x, 0.0), x)
    np.testing.assert_allclose(turn(jax.random.key(0), jnp.array([9]), x[:1], 40.0)[0, ..., 0], made[9], atol=1e-6)


def test_more_images_than_a_classifier_can_have_are_refused():
    with pytest.raises(
        ValueError, match=r"a class of each image, and 20001 are more than.*train\[:8000\], or the method instdisc"
    ):
        METHODS["exemplar"](models.create("resnet8"), dataclasses.replace(RUN, num_images=20_001))
