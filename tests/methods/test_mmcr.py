import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Run

VIEWS = tuple(jax.random.normal(jax.random.key(0), (3, 8, 16, 16, 1)))


def make(**options):
    run = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 4), "num_views": 3} | options
    return METHODS["mmcr"](models.create("resnet8", stages=(1,)), run, **options)


def projections(method, params, batch_stats):
    """Of all views as one batch, unit vectors [views, batch, dim] in float64."""
    x = jnp.concatenate(VIEWS)
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    z = np.float64(x).reshape(3, 8, 4)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def nuclear_norm(z):
    return np.linalg.svd(z, compute_uv=False).sum()


def test_loss_is_the_nuclear_norm_of_the_centroids_and_of_the_views():
    method = make(weight=0.5)
    params, state = method.init(jax.random.key(1), VIEWS[0])
    assert set(state) == {"batch_stats"}
    loss, (new_state, _) = method.loss(params, state, {"views": VIEWS}, jax.random.key(2))
    z = projections(method, params, state["batch_stats"])
    within = np.mean([nuclear_norm(z[:, b]) for b in range(8)])
    np.testing.assert_allclose(loss, 0.5 * within - nuclear_norm(z.mean(0)), rtol=1e-5)
    assert method.update(params, new_state, 1) is new_state


def test_momentum_encoder_has_half_of_the_centroids_and_follows():
    method = make(momentum=True, decay=0.75)
    params, state = method.init(jax.random.key(1), VIEWS[0])
    jax.tree.map(np.testing.assert_array_equal, state["teacher"]["params"], params)
    other = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(3), p.shape), params)
    loss, (new_state, _) = method.loss(other, state, {"views": VIEWS}, jax.random.key(2))
    online = projections(method, other, state["batch_stats"])
    momentum = projections(method, params, state["teacher"]["batch_stats"])
    np.testing.assert_allclose(loss, -nuclear_norm((online.mean(0) + momentum.mean(0)) / 2), rtol=1e-5)
    moved = method.update(other, new_state, 1)["teacher"]["params"]
    jax.tree.map(
        lambda t, old, new: np.testing.assert_allclose(t, 0.75 * old + 0.25 * new, atol=1e-6), moved, params, other
    )


def test_views_of_two_augmentations_take_turns_and_the_head_has_no_biases():
    method = make()
    assert method.views == ("view1", "view2", "view1")
    params, _ = method.init(jax.random.key(0), VIEWS[0])
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes == {
        "Dense_0": {"kernel": (16, 16)},
        "BatchNorm_0": {"scale": (16,), "bias": (16,)},
        "Dense_1": {"kernel": (16, 4)},
    }


@pytest.mark.parametrize("momentum", [False, True])
def test_chance_level_is_the_loss_of_equal_embeddings(momentum):
    z = jnp.ones((8, 3, 4))
    loss = losses.mmcr(z, z if momentum else None, weight=0.5)
    np.testing.assert_allclose(loss, make(weight=0.5, momentum=momentum).chance_level, rtol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_views": 1}, "num_views must be at least 2, got 1"),
        ({"weight": -1.0}, "weight must be at least 0, got -1.0"),
        ({"decay": 1.5}, "decay must be in 0..1, got 1.5"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
