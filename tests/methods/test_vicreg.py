import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 20, 6), **options}
    return METHODS["vicreg"](models.create("resnet8", stages=(1,)), RUN, **options)


def start(method):
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1))
    return *method.init(jax.random.key(1), x1[:1]), (x1, x2)


def projection(method, params, state, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return np.asarray(x, np.float64)


def off_diagonal(z):
    c = np.cov(z, rowvar=False)
    return np.sum(c**2) - np.sum(np.diag(c) ** 2)


def test_loss_is_its_three_terms_of_views_that_passed_by_themselves():
    method = make(invariance=2.0, variance=3.0, covariance=5.0)
    params, state, views = start(method)
    z1, z2 = z = [projection(method, params, state, x) for x in views]
    invariance = np.mean((z1 - z2) ** 2)
    hinges = [np.mean(np.maximum(0, 1 - np.sqrt(np.var(x, axis=0, ddof=1) + 1e-4))) for x in z]
    assert min(hinges) > 0.01  # else the term would not be tested
    expected = 2 * invariance + 3 * np.mean(hinges) + 5 * (off_diagonal(z1) + off_diagonal(z2)) / 6
    output = method.loss(params, state, {"views": views}, jax.random.key(2))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    np.testing.assert_allclose(output.embeddings, np.stack(z), rtol=1e-4, atol=1e-6)


def test_expander_is_the_authors():
    params, _, _ = start(make())
    shapes = jax.tree.map(jnp.shape, params["projector"])
    assert shapes == {
        "Dense_0": {"kernel": (16, 24), "bias": (24,)},
        "BatchNorm_0": {"scale": (24,), "bias": (24,)},
        "Dense_1": {"kernel": (24, 20), "bias": (20,)},
        "BatchNorm_1": {"scale": (20,), "bias": (20,)},
        "Dense_2": {"kernel": (20, 6)},
    }


def test_chance_level_is_the_loss_of_equal_embeddings():
    z = jnp.ones((8, 6))
    np.testing.assert_allclose(make(variance=3.0).chance_level, losses.vicreg(z, z, variance=3.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["invariance", "variance", "covariance"])
def test_refuses_weights_that_are_not_positive(name):
    with pytest.raises(ValueError, match=f"{name} must be above 0, got -1.0"):
        make(**{name: -1.0})
