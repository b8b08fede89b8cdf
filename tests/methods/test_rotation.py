import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit.tiling import rotations

RUN = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)


def make(**options):
    return METHODS["rotation"](models.create("resnet8", stages=(1,), width=2.0), RUN, **options)


def test_rotations_move_pixels_counterclockwise():
    image = np.array([[1, 2], [3, 4]], np.float32)[None, :, :, None]
    turned = np.asarray(rotations(jnp.asarray(image)))[0, ..., 0]
    np.testing.assert_array_equal(turned, [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]])


@pytest.mark.slow
def test_loss_is_the_cross_entropy_of_all_four_copies():
    method = make()
    x = jax.random.normal(jax.random.key(0), (6, 12, 12, 1))
    params, state = method.init(jax.random.key(1), x[:1])
    output = method.loss(params, state, {"views": (x,)}, jax.random.key(2))
    copies = np.concatenate(
        [np.rot90(np.asarray(x), k, axes=(1, 2)) for k in range(4)]
    )  # turn by turn, not interleaved
    h = jnp.asarray(copies)
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        h, _ = module.apply(variables, h, train=True, mutable=["batch_stats"])
    labels = np.repeat(np.arange(4), 6)
    np.testing.assert_allclose(output.loss, losses.classification(h, jnp.asarray(labels)), rtol=1e-4)
    np.testing.assert_allclose(output.metrics["accuracy"], np.mean(np.argmax(h, axis=1) == labels), rtol=1e-6)


def test_one_turn_of_each_image_at_random():
    """By a network whose logits are the four corners, which show the turn."""
    method = make(all_turns=False)
    x = jnp.zeros((64, 3, 3, 1)).at[:, 0, 0].set(1.0)  # a turn by k quarters takes the corner to CORNERS[k]

    class Forward:
        def __call__(self, networks, params, batch_stats, images, **_):
            corners = jnp.stack([images[:, i, j, 0] for i, j in ((0, 0), (2, 0), (2, 2), (0, 2))], axis=1)
            return {"backbone": images.reshape(len(images), -1), "classifier": 50.0 * corners}, batch_stats

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssl_jax.methods.toolkit.forward", Forward())
        batch = {"views": (x,), "index": jnp.arange(64)}
        output = method.loss({}, {"batch_stats": {}}, batch, jax.random.key(2))
    assert (float(output.metrics["accuracy"]), output.embeddings.shape) == (1.0, (1, 64, 9))
    np.testing.assert_allclose(output.loss, 0.0, atol=1e-6)
    seen = output.embeddings.reshape(64, 3, 3)
    turns = np.argmax(np.stack([seen[:, i, j] for i, j in ((0, 0), (2, 0), (2, 2), (0, 2))]), axis=0)
    assert np.all(np.bincount(turns, minlength=4) > 4)  # of 16 each


@pytest.mark.usefixtures("unchecked")
def test_views_that_are_no_squares_are_refused():
    with pytest.raises(ValueError, match="square views, got 12x10"):
        rotations(jnp.zeros((1, 12, 10, 1)))
