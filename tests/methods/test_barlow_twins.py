import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models, optim
from ssl_jax.config import get_config, plain
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 20, 6), **options}
    return METHODS["barlow_twins"](models.create("resnet8", stages=(1,)), RUN, **options)


def start(method):
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1))
    return *method.init(jax.random.key(1), x1[:1]), (x1, x2)


def projection(method, params, state, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return np.asarray(x, np.float64)


@pytest.mark.slow
def test_loss_is_that_of_the_correlation_of_views_that_passed_by_themselves():
    method = make(off_diagonal_weight=0.3, loss_scale=0.5)
    params, state, views = start(method)
    z1, z2 = (projection(method, params, state, x) for x in views)
    c = np.corrcoef(z1, z2, rowvar=False)[:6, 6:]
    on, off = np.sum((1 - np.diag(c)) ** 2), np.sum(c**2) - np.sum(np.diag(c) ** 2)
    output = method.loss(params, state, {"views": views}, jax.random.key(2))
    np.testing.assert_allclose(output.loss, 0.5 * (on + 0.3 * off), rtol=1e-3)  # BatchNorm's eps of 1e-5
    np.testing.assert_allclose(output.embeddings, np.stack([z1, z2]), rtol=1e-4, atol=1e-6)


def test_projector_is_the_authors():
    params, _, _ = start(make())
    shapes = jax.tree.map(jnp.shape, params["projector"])
    # Linear layers without bias, BatchNorm before each ReLU and none at the end.
    kernels = {"Dense_0": (64 // 4, 24), "Dense_1": (24, 20), "Dense_2": (20, 6)}
    norms = {"BatchNorm_0": 24, "BatchNorm_1": 20}
    expected = {name: {"kernel": shape} for name, shape in kernels.items()}
    assert shapes == expected | {name: {"scale": (dim,), "bias": (dim,)} for name, dim in norms.items()}


def test_chance_level_is_the_loss_of_equal_embeddings():
    z = jnp.ones((8, 6))
    np.testing.assert_allclose(make(loss_scale=0.1).chance_level, 0.1 * losses.barlow_twins(z, z), rtol=1e-6)


def test_imagenet_optimizer_has_a_rate_of_its_own_for_vectors():
    """0.2 a 256 images times the trust ratio for weights, 0.0048 for the others, 0.1 % of both at the end.

    0.0048 of a 16th of the gradient, as the authors' 16 devices have it.
    """
    options = plain(get_config("barlow_twins:imagenet_r50").optimizer)
    tx, schedule = optim.create(**options, steps=20_000)
    np.testing.assert_allclose([schedule(options["warmup_steps"]), schedule(20_000)], [1.6, 0.0016], rtol=1e-5)
    tx, _ = optim.create(**{**options, "warmup_steps": 0, "weight_decay": 0.0}, steps=20_000)
    params = {"kernel": jnp.full((2, 2), 3.0), "bias": jnp.full(2, 3.0)}
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -1.6 * 0.001 * 3.0, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], -0.0048 * 2048 / 256 / 16, rtol=1e-5)


@pytest.mark.parametrize("name", ["off_diagonal_weight", "loss_scale"])
def test_refuses_weights_that_are_not_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got 0.0"):
        make(**{name: 0.0})
