import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods.drawn import draw

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=1000)
VIEWS = np.random.default_rng(0).normal(size=(2, 8, 12, 12, 1)).astype(np.float32)


def make(**options):
    return METHODS["byol"](
        models.create("resnet8", stages=(1,)), RUN, **{"projector": (24, 6), "predictor": (12, 6), **options}
    )


def through(networks, params, batch_stats, x):
    for name, module in networks.items():
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    return x


def test_each_view_predicts_the_teachers_projection_of_the_other_and_the_teacher_gets_no_gradient():
    method = make()

    params, state = draw(method, VIEWS[0])  # of a teacher that is not the online network
    teacher = state["teacher"]

    @jax.jit
    def run(params, state, views):
        def of_teacher(weights):
            changed = {**state, "teacher": {**state["teacher"], "params": weights}}
            output = method.loss(params, changed, {"views": tuple(views)}, jax.random.key(3))
            return output.loss, output.state

        (loss, new_state), gradient = jax.value_and_grad(of_teacher, has_aux=True)(state["teacher"]["params"])
        p = jax.vmap(lambda x: through(method.networks, params, state["batch_stats"], x))(views)
        teacher = state["teacher"]["params"], state["teacher"]["batch_stats"]
        t = jax.vmap(lambda x: through(method.teacher_networks, *teacher, x))(views)
        return new_state["teacher"], gradient, loss, p, t

    new_teacher, gradient, loss, p, t = jax.device_get(run(params, state, VIEWS))
    (p1, p2), (t1, t2) = (
        [np.float64(x) / np.linalg.norm(np.float64(x), axis=1, keepdims=True) for x in of_views] for of_views in (p, t)
    )
    expected = np.mean(np.sum((p1 - t2) ** 2, axis=1)) + np.mean(np.sum((p2 - t1) ** 2, axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), teacher, new_teacher)
    assert all(jax.tree.leaves(changed["batch_stats"])) and not any(jax.tree.leaves(changed["params"]))
    assert not any(np.any(g) for g in jax.tree.leaves(gradient))


def test_the_teacher_starts_as_a_copy():
    method = make()
    params, state = jax.device_get(jax.jit(method.init)(jax.random.key(1), VIEWS[0]))
    jax.tree.map(
        np.testing.assert_array_equal,
        state["teacher"]["params"],
        {name: params[name] for name in method.teacher_networks},
    )


def test_teacher_decay_goes_to_one():
    method = make(decay=0.9)
    params, state = draw(method, VIEWS[0])
    update = jax.jit(method.update)
    for step, decay in ((0, 0.9), (50, 0.95), (100, 1.0)):
        moved = update(params, state, step)["teacher"]["params"]
        expected = jax.tree.map(
            lambda t, p, decay=decay: decay * t + (1 - decay) * p,
            state["teacher"]["params"],
            {name: params[name] for name in method.teacher_networks},
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), moved, expected)


def test_heads_are_the_authors():
    """A linear layer with bias, BatchNorm, ReLU, and one without either: of the projector and of the predictor."""
    params, _ = jax.eval_shape(make().init, jax.random.key(1), VIEWS[0])
    for name, widths in (("projector", (24, 6)), ("predictor", (12, 6))):
        shapes = jax.tree.map(np.shape, params[name])
        assert set(shapes) == {"Dense_0", "BatchNorm_0", "Dense_1"}
        assert shapes["Dense_0"]["bias"] == widths[:1] and "bias" not in shapes["Dense_1"]
        assert shapes["Dense_1"]["kernel"] == widths


def test_refuses_a_decay_that_is_no_share():
    with pytest.raises(ValueError, match=r"decay must be in 0\.\.1, got 1\.5"):
        make(decay=1.5)
