import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule

VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 6, 16, 16, 1)))


def make(batch_size=6, **options):
    schedule = Schedule(batch_size=batch_size, steps=100, steps_per_epoch=10, num_images=1000)
    return METHODS["dcl"](models.create("resnet8", stages=(1,)), schedule, **dict(projector=(16, 8)) | options)


def projections(method, params, state):
    x = jnp.concatenate(VIEWS)
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_leaves_the_positive_out_of_the_candidates(weighted):
    method = make(temperature=0.3, weighted=weighted, sigma=0.4)
    params, state = method.init(jax.random.key(1), VIEWS[0])
    output = method.loss(params, state, {"views": VIEWS}, jax.random.key(2))
    z = projections(method, params, state)
    similarity = z @ z.T
    alike = np.array([similarity[i, i + 6] for i in range(6)])
    weights = 2 - 6 * np.exp(alike / 0.4) / np.sum(np.exp(alike / 0.4)) if weighted else np.ones(6)
    expected = []
    for i in range(12):
        others = [k for k in range(12) if k % 6 != i % 6]
        expected.append(-weights[i % 6] * alike[i % 6] / 0.3 + np.log(np.sum(np.exp(similarity[i, others] / 0.3))))
    np.testing.assert_allclose(output.loss, np.mean(expected), rtol=1e-5)
    assert output.embeddings.shape == (2, 6, 8)


def test_projector_is_simclrs():
    params, state = make().init(jax.random.key(0), VIEWS[0])
    simclr = METHODS["simclr"](make().backbone, make().schedule, projector=(16, 8))
    expected = jax.eval_shape(simclr.init, jax.random.key(0), VIEWS[0])
    assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize("weighted, loss", [(False, losses.dcl), (True, losses.dclw)])
def test_chance_level_is_the_loss_of_equal_embeddings(weighted, loss):
    z = jnp.ones((16, 4))
    np.testing.assert_allclose(make(batch_size=16, weighted=weighted).chance_level, loss(z, z), rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"sigma": -0.5}, "sigma must be above 0"),
        ({"batch_size": 1}, "batch_size=1 leaves no second image"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
