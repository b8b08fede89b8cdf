import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(**options):
    options = {"projector": (12, 6), "classes": 9, "classifiers": 2, "temperature": 0.3, **options}
    return METHODS["self_classifier"](models.create("resnet8", stages=(1,)), RUN, **options)


@functools.cache
def step():
    """(params, state, output, projections of each view)"""
    method = make()
    params, state = method.init(jax.random.key(1), jnp.asarray(VIEWS[0]))

    def project(params, state, x):
        for name, module in method.networks.items():
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        return x

    @jax.jit
    def run(params, state, views):
        output = method.loss(params, state, {"views": views}, jax.random.key(2))
        return output, [project(params, state, x) for x in views]

    return jax.device_get((params, state, *run(params, state, VIEWS)))


def softmax(x, axis):
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


def test_each_view_predicts_the_others_share_of_each_class():
    _, state, output, z = step()
    z = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in np.asarray(z, np.float64)]
    terms = []
    for prototypes in state["prototypes"]:
        s1, s2 = (x @ prototypes.T / 0.3 for x in z)
        for s, other in ((s1, s2), (s2, s1)):
            terms.append(-np.sum(softmax(other, 0) * np.log(softmax(s, 1))) / 8)
    np.testing.assert_allclose(output.loss, np.mean(terms), rtol=1e-4)
    assert output.embeddings.shape == (2, 8, 6)


@pytest.mark.parametrize("classes", [9, 4])
def test_classifiers_are_of_a_matrix_with_orthonormal_columns_or_rows_and_stay(classes):
    method = make(classes=classes)
    params, state = method.init(jax.random.key(1), jnp.asarray(VIEWS[0]))
    prototypes = np.asarray(state["prototypes"], np.float64)
    assert prototypes.shape == (2, classes, 6)
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=-1), 1.0, rtol=1e-5)
    if classes <= 6:
        for rows in prototypes:
            np.testing.assert_allclose(rows @ rows.T, np.eye(classes), atol=1e-5)
    assert np.abs(prototypes[0] - prototypes[1]).max() > 0.1
    assert "prototypes" not in params
    if classes == 9:
        np.testing.assert_array_equal(step()[2].state["prototypes"], step()[1]["prototypes"])


def test_the_projector_is_the_authors():
    shapes = jax.tree.map(np.shape, step()[0]["projector"])
    assert shapes == {
        "Dense_0": {"kernel": (16, 12), "bias": (12,)},
        "BatchNorm_0": {"scale": (12,), "bias": (12,)},
        "Dense_1": {"kernel": (12, 6), "bias": (6,)},
    }
    assert make().networks["projector"].activation == "leaky_relu"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"classes": 1}, "classes must be at least 2, got 1"),
        ({"classifiers": 0}, "classifiers must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
