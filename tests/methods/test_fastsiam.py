import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(name="fastsiam", **options):
    options = {"projector": (24, 16), "predictor": (6, 16), **options}
    return METHODS[name](models.create("resnet8", stages=(1,)), RUN, **options)


def some_views(number):
    return tuple(jax.random.normal(jax.random.key(0), (number, 8, 16, 16, 1)))


def through(method, params, state, x):
    """(projection, prediction) of one view by itself."""
    outputs = []
    for name, module in method.networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
        outputs.append(x)
    return outputs[1:]


def cosine(a, b):
    return jnp.mean(jnp.sum(a * b, -1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1))


@pytest.mark.slow
def test_each_view_predicts_the_constant_mean_of_the_others():
    method = make(num_views=3)
    views = some_views(3)
    params, state = method.init(jax.random.key(1), views[0][:1])
    z1, z2, z3 = (through(method, params, state, x)[0] for x in views)
    targets = [(z2 + z3) / 2, (z1 + z3) / 2, (z1 + z2) / 2]

    def expected(params):
        predictions = [through(method, params, state, x)[1] for x in views]
        return -sum(cosine(p, t) for p, t in zip(predictions, targets, strict=True)) / 3

    def loss(params):
        output = method.loss(params, state, {"views": views}, jax.random.key(2))
        return output.loss, output.embeddings

    (value, embeddings), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    expected_value, expected_gradient = jax.value_and_grad(expected)(params)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, expected_gradient)
    np.testing.assert_allclose(embeddings, jnp.stack([z1, z2, z3]), rtol=1e-5)


def test_with_two_views_it_is_simsiam():
    views = some_views(2)
    values = []
    for method in (make(num_views=2), make("simsiam")):
        params, state = method.init(jax.random.key(1), views[0][:1])
        values.append(method.loss(params, state, {"views": views}, jax.random.key(2)).loss)
        assert method.constant_lr == ("predictor",)
    np.testing.assert_allclose(*values, rtol=1e-5)


def test_wants_as_many_views_as_it_says():
    assert make().views == ("view",) * 4
    assert make(num_views=6).views == ("view",) * 6


def test_refusals():
    with pytest.raises(ValueError, match="num_views must be at least 2, got 1"):
        make(num_views=1)
    with pytest.raises(ValueError, match=r"ends in 12 .* projector's 16"):
        make(predictor=(6, 12))
