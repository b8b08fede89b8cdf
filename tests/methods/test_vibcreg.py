import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from tests.methods.drawn import draw

RUN = Schedule(batch_size=32, steps=100, steps_per_epoch=10, num_images=1000)


def make(**options):
    options = {"projector": (24, 20, 6), "norm_groups": 2, **options}
    return METHODS["vibcreg"](models.create("resnet8", stages=(1,)), RUN, **options)


def off_diagonal(z):
    c = np.corrcoef(z, rowvar=False)
    return np.mean(c**2 * (1 - np.eye(len(c))))


def test_loss_is_its_three_terms_of_views_that_are_whitened_within_groups():
    method = make(invariance=2.0, variance=3.0, covariance=5.0, norm_groups=3)
    # Else the variance of what is white already would leave nothing of the hinge.
    scale = np.linspace(0.3, 1.5, 6, dtype=np.float32)

    @jax.jit
    def run(params, state, views):
        def projection(x):
            for name, module in method.networks.items():
                variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
                x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            return x

        return method.loss(params, state, {"views": tuple(views)}, jax.random.key(2)), jax.vmap(projection)(views)

    views = np.random.default_rng(0).normal(size=(2, 32, 12, 12, 1)).astype(np.float32)
    params, state = draw(method, views[0, :1])
    params["iter_norm"] = {"scale": scale, "bias": np.zeros(6, np.float32)}
    output, z = jax.device_get(run(params, state, views))
    z1, z2 = z = np.float64(z)
    invariance = np.mean((z1 - z2) ** 2)
    hinges = [np.mean(np.maximum(0, 1 - np.sqrt(np.var(x, axis=0, ddof=1) + 1e-4))) for x in z]
    expected = 2 * invariance + 3 * sum(hinges) + 5 * (off_diagonal(z1) + off_diagonal(z2))
    np.testing.assert_allclose(output.loss, expected, rtol=1e-3)
    np.testing.assert_allclose(output.embeddings, z, rtol=1e-3, atol=1e-4)
    for x in output.embeddings / scale:
        covariance = np.cov(x, rowvar=False, bias=True)
        for first in (0, 2, 4):
            np.testing.assert_allclose(covariance[first : first + 2, first : first + 2], np.eye(2), atol=0.1)
    assert not np.allclose(output.state["batch_stats"]["iter_norm"]["whitening"], np.eye(2))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_expander_is_the_authors(activation):
    method = make(activation=activation)
    params, _ = jax.eval_shape(method.init, jax.random.key(1), np.zeros((1, 12, 12, 1), np.float32))
    shapes = jax.tree.map(jnp.shape, params)
    assert shapes["projector"]["Dense_1"] == {"kernel": (24, 20), "bias": (20,)}
    assert shapes["projector"]["Dense_2"] == {"kernel": (20, 6), "bias": (6,)}
    assert shapes["iter_norm"] == {"scale": (6,), "bias": (6,)}
    assert method.networks["projector"].activation == activation


def test_chance_level_is_the_loss_of_equal_embeddings():
    z = np.ones((8, 6), np.float32)
    np.testing.assert_allclose(make(variance=3.0).chance_level, losses.vibcreg(z, z, variance=3.0), rtol=1e-6)


def test_refusals():
    with pytest.raises(ValueError, match=r"norm_groups=4 does not divide the 6 .*use \(24, 20, 8\)"):
        make(norm_groups=4)
    with pytest.raises(ValueError, match=r"covariance must be above 0, got 0.0"):
        make(covariance=0.0)
