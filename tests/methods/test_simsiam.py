import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, optim
from ssl_jax.methods import METHODS, Schedule

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)


def make(projector=(24, 24, 16), predictor=(6, 16)):
    return METHODS["simsiam"](models.create("resnet8", stages=(1,)), RUN, projector=projector, predictor=predictor)


def start(method):
    x1, x2 = jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1))
    return *method.init(jax.random.key(1), x1[:1]), {"views": (x1, x2)}


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
def test_loss_and_gradient_are_those_of_constant_targets():
    method = make()
    params, state, batch = start(method)
    x1, x2 = batch["views"]
    (t1, _), (t2, _) = (through(method, params, state, x) for x in (x1, x2))

    def expected(params):
        (_, p1), (_, p2) = (through(method, params, state, x) for x in (x1, x2))
        return -(cosine(p1, t2) + cosine(p2, t1)) / 2

    def loss(params):
        output = method.loss(params, state, batch, jax.random.key(2))
        return output.loss, output.embeddings

    (value, embeddings), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    expected_value, expected_gradient = jax.value_and_grad(expected)(params)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), gradient, expected_gradient)
    np.testing.assert_allclose(embeddings, jnp.stack([t1, t2]), rtol=1e-5, atol=1e-6)


def test_heads_are_the_authors():
    params, _, _ = start(make())
    shapes = jax.tree.map(jnp.shape, params)
    assert set(shapes["projector"]) == {
        "Dense_0",
        "Dense_1",
        "Dense_2",
        "BatchNorm_0",
        "BatchNorm_1",
    }  # last: no affine
    assert shapes["projector"]["Dense_2"] == {"kernel": (24, 16)}
    assert shapes["predictor"]["Dense_0"] == {"kernel": (16, 6)}
    assert shapes["predictor"]["Dense_1"] == {"kernel": (6, 16), "bias": (16,)}


def test_the_projections_end_in_batch_norm():
    method = make()
    params, state, batch = start(method)
    z = method.loss(params, state, batch, jax.random.key(2)).embeddings
    np.testing.assert_allclose(jnp.mean(z, axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(jnp.var(z, axis=1), 1.0, atol=0.05)  # eps against small variances


def test_only_the_predictor_keeps_its_learning_rate():
    method = make()
    params, _, _ = start(method)
    tx, _ = optim.create("sgd", lr=0.5, warmup_steps=0, steps=1, momentum=0.0, constant_lr=method.constant_lr)
    opt_state = tx.init(params)
    ones = jax.tree.map(jnp.ones_like, params)
    for _ in range(2):  # the second is at the end of the schedule, where the rate is 0
        updates, opt_state = tx.update(ones, opt_state, params)
    for name, part in updates.items():
        for leaf in jax.tree.leaves(part):
            np.testing.assert_allclose(leaf, -0.5 if name == "predictor" else 0.0, atol=1e-7)


def test_refuses_a_predictor_that_does_not_end_as_the_projector():
    with pytest.raises(ValueError, match=r"ends in 12 .* projector's 16"):
        make(predictor=(6, 12))
