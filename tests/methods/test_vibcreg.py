import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=32, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 20, 6), "norm_groups": 2, **options}
    return METHODS["vibcreg"](models.create("resnet8", stages=(1,)), RUN, **options)


def start(method):
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 32, 16, 16, 1))
    return *method.init(jax.random.key(1), x1[:1]), (x1, x2)


def projection(method, params, state, x):
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return np.asarray(x, np.float64)


def off_diagonal(z):
    c = np.corrcoef(z, rowvar=False)
    return np.mean(c**2 * (1 - np.eye(len(c))))


def test_loss_is_its_three_terms_of_whitened_views():
    method = make(invariance=2.0, variance=3.0, covariance=5.0)
    params, state, views = start(method)
    # Else the variance of what is white already would leave nothing of the hinge.
    params["iter_norm"]["scale"] = jnp.linspace(0.3, 1.5, 6)
    z1, z2 = z = [projection(method, params, state, x) for x in views]
    invariance = np.mean((z1 - z2) ** 2)
    hinges = [np.mean(np.maximum(0, 1 - np.sqrt(np.var(x, axis=0, ddof=1) + 1e-4))) for x in z]
    expected = 2 * invariance + 3 * sum(hinges) + 5 * (off_diagonal(z1) + off_diagonal(z2))
    loss, (_, metrics) = method.loss(params, state, {"views": views}, jax.random.key(2))
    np.testing.assert_allclose(loss, expected, rtol=1e-3)
    np.testing.assert_allclose(metrics["embeddings"], np.stack(z), rtol=1e-3, atol=1e-4)


def test_each_views_projection_is_white_within_its_groups():
    method = make(projector=(24, 6), norm_groups=3)
    params, state, views = start(method)
    _, (new_state, metrics) = method.loss(params, state, {"views": views}, jax.random.key(2))
    for z in metrics["embeddings"]:
        covariance = np.cov(z, rowvar=False, bias=True)
        for first in (0, 2, 4):
            np.testing.assert_allclose(covariance[first : first + 2, first : first + 2], np.eye(2), atol=0.1)
    assert not np.allclose(new_state["batch_stats"]["iter_norm"]["whitening"], np.eye(2))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_expander_is_the_authors(activation):
    method = make(activation=activation)
    params, _, _ = start(method)
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["projector"]["Dense_1"] == {"kernel": (24, 20), "bias": (20,)}
    assert shapes["projector"]["Dense_2"] == {"kernel": (20, 6), "bias": (6,)}
    assert shapes["iter_norm"] == {"scale": (6,), "bias": (6,)}
    assert method.networks["projector"].activation == activation


def test_chance_level_is_the_loss_of_equal_embeddings():
    z = jnp.ones((8, 6))
    np.testing.assert_allclose(make(variance=3.0).chance_level, losses.vibcreg(z, z, variance=3.0), rtol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match=r"norm_groups=4 does not divide the 6 .*use \(24, 20, 8\)"):
        make(norm_groups=4)
    with pytest.raises(ValueError, match=r"covariance must be above 0, got 0.0"):
        make(covariance=0.0)
