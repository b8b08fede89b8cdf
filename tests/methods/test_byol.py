import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = tuple(jax.random.normal(jax.random.key(0), (2, 8, 16, 16, 1)))


def make(**options):
    return METHODS["byol"](
        models.create("resnet8", stages=(1,)), RUN, **{"projector": (24, 6), "predictor": (12, 6), **options}
    )


def start(method):
    """With a teacher that is not the online network."""
    params, state = method.init(jax.random.key(1), VIEWS[0])
    other, _ = method.init(jax.random.key(2), VIEWS[0])
    state["teacher"]["params"] = {name: other[name] for name in method.teacher_networks}
    return params, state


def through(networks, params, batch_stats, x):
    for name, module in networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    x = np.asarray(x, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_each_view_predicts_the_teachers_projection_of_the_other():
    method = make()
    params, state = start(method)
    teacher = state["teacher"]
    p1, p2 = (through(method.networks, params, state["batch_stats"], x) for x in VIEWS)
    t1, t2 = (through(method.teacher_networks, teacher["params"], teacher["batch_stats"], x) for x in VIEWS)
    loss, (new_state, _) = method.loss(params, state, {"views": VIEWS}, jax.random.key(3))
    expected = np.mean(np.sum((p1 - t2) ** 2, axis=1)) + np.mean(np.sum((p2 - t1) ** 2, axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), teacher, new_state["teacher"])
    assert all(jax.tree.leaves(changed["batch_stats"])) and not any(jax.tree.leaves(changed["params"]))


def test_the_teacher_starts_as_a_copy_and_gets_no_gradient():
    method = make()
    params, state = method.init(jax.random.key(1), VIEWS[0])
    jax.tree.map(
        np.testing.assert_array_equal,
        state["teacher"]["params"],
        {name: params[name] for name in method.teacher_networks},
    )

    def of_teacher(weights):
        teacher = {**state["teacher"], "params": weights}
        return method.loss(params, {**state, "teacher": teacher}, {"views": VIEWS}, jax.random.key(3))[0]

    gradient = jax.grad(of_teacher)(state["teacher"]["params"])
    assert not any(bool(jnp.any(g)) for g in jax.tree.leaves(gradient))


@pytest.mark.parametrize("step, decay", [(0, 0.9), (50, 0.95), (100, 1.0)])
def test_teacher_decay_goes_to_one(step, decay):
    method = make(decay=0.9)
    params, state = start(method)
    moved = method.update(params, state, step)["teacher"]["params"]
    expected = jax.tree.map(
        lambda t, p: decay * t + (1 - decay) * p,
        state["teacher"]["params"],
        {name: params[name] for name in method.teacher_networks},
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


def test_heads_are_the_authors():
    """A linear layer with bias, BatchNorm, ReLU, and one without either: of the projector and of the predictor."""
    params, _ = make().init(jax.random.key(1), VIEWS[0])
    for name, widths in (("projector", (24, 6)), ("predictor", (12, 6))):
        shapes = jax.tree.map(jnp.shape, params[name])
        assert set(shapes) == {"Dense_0", "BatchNorm_0", "Dense_1"}
        assert shapes["Dense_0"]["bias"] == widths[:1] and "bias" not in shapes["Dense_1"]
        assert shapes["Dense_1"]["kernel"] == widths


def test_refuses_a_decay_that_is_no_share():
    with pytest.raises(ValueError, match=r"decay must be in 0\.\.1, got 1\.5"):
        make(decay=1.5)
