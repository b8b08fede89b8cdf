import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from tests.methods.drawn import draw

VIEWS = np.random.default_rng(0).normal(size=(3, 8, 12, 12, 1)).astype(np.float32)


def make(**options):
    run = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
    options = {"projector": (16, 4), "num_views": 3} | options
    return METHODS["mmcr"](models.create("resnet8", stages=(1,)), run, **options)


def projections(method, params, batch_stats, views):
    """Of all views as one batch."""
    x = jnp.concatenate(views)
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return x


def unit(z):
    """Unit vectors [views, batch, dim] in float64."""
    z = np.float64(z).reshape(3, 8, 4)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def nuclear_norm(z):
    return np.linalg.svd(z, compute_uv=False).sum()


def test_loss_is_the_nuclear_norm_of_the_centroids_and_of_the_views():
    method = make(weight=0.5)

    @jax.jit
    def run(params, state, views):
        assert set(state) == {"batch_stats"}
        output = method.loss(params, state, {"views": tuple(views)}, jax.random.key(2))
        assert method.update(params, output.state, jnp.array(1)) is output.state
        return output.loss, projections(method, params, state["batch_stats"], views)

    loss, z = run(*draw(method, VIEWS[0]), VIEWS)
    z = unit(z)
    within = np.mean([nuclear_norm(z[:, b]) for b in range(8)])
    np.testing.assert_allclose(loss, 0.5 * within - nuclear_norm(z.mean(0)), rtol=1e-5)


def test_momentum_encoder_has_half_of_the_centroids_and_follows():
    method = make(momentum=True, decay=0.75)

    @jax.jit
    def run(params, state, views):
        started, first = method.init(jax.random.key(1), views[0])
        output = method.loss(params, state, {"views": tuple(views)}, jax.random.key(2))
        moved, teacher = method.update(params, output.state, jnp.array(1))["teacher"]["params"], state["teacher"]
        online = projections(method, params, state["batch_stats"], views)
        momentum = projections(method, teacher["params"], teacher["batch_stats"], views)
        return (started, first["teacher"]["params"]), output.loss, moved, online, momentum

    params, state = draw(method, VIEWS[0])
    first, loss, moved, online, momentum = jax.device_get(run(params, state, VIEWS))
    jax.tree.map(np.testing.assert_array_equal, *first)  # the teacher starts as a copy
    np.testing.assert_allclose(loss, -nuclear_norm((unit(online).mean(0) + unit(momentum).mean(0)) / 2), rtol=1e-5)
    jax.tree.map(
        lambda t, old, new: np.testing.assert_allclose(t, 0.75 * old + 0.25 * new, atol=1e-6),
        moved,
        state["teacher"]["params"],
        params,
    )


def test_views_of_two_augmentations_take_turns_and_the_head_has_no_biases():
    method = make()
    assert method.views == ("view1", "view2", "view1")
    params, _ = jax.eval_shape(method.init, jax.random.key(0), VIEWS[0])
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes == {
        "Dense_0": {"kernel": (16, 16)},
        "BatchNorm_0": {"scale": (16,), "bias": (16,)},
        "Dense_1": {"kernel": (16, 4)},
    }


def test_chance_level_is_the_loss_of_equal_embeddings():
    @jax.jit
    def run(z):
        return losses.mmcr(z, None, weight=0.5), losses.mmcr(z, z, weight=0.5)

    chance = [make(weight=0.5, momentum=momentum).chance_level for momentum in (False, True)]
    np.testing.assert_allclose(run(np.ones((8, 3, 4), np.float32)), chance, rtol=1e-4)


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
