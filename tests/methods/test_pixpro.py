import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.pixpro import Propagation
from tests.methods import drawn

VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))
WHOLE, LEFT = ([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5, 0.0, 0.0])
# The second view of the first four images is their left half, stretched; the others are whole, the last one mirrored.
BOXES = (np.array([WHOLE] * 8, np.float32), np.array([LEFT] * 4 + [WHOLE] * 4, np.float32))
BOXES[1][7, 4] = 1.0


def make(**options):
    schedule = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
    options = dict(projector=(12, 6), reach=0.4) | options
    return METHODS["pixpro"](models.create("resnet8", stages=(1,)), schedule, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*jax.device_get(jax.jit(make().init)(jax.random.key(1), VIEWS[0])))


@functools.cache
def run():
    method = make()

    @jax.jit
    def run(params, state, views, boxes):
        def loss(params, teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, {"views": views, "boxes": boxes}, jax.random.key(2))
            return output.loss, output

        gradients, output = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, state["teacher"]["params"])
        return output, *gradients

    return jax.device_get(run(*first(), VIEWS, BOXES))


def maps(params, batch_stats, x, *names):
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    h, _ = make().backbone.apply(variables, x, train=True, mutable=["batch_stats"], method="feature_map")
    for name in names:
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        h, _ = make().networks[name].apply(variables, h, train=True, mutable=["batch_stats"])
    h = np.asarray(h, np.float64).reshape(8, 16, -1)
    return h / np.linalg.norm(h, axis=-1, keepdims=True)


def place(image, position):
    """(row, column) of a position of the second view's map of 4 x 4, in the first view's, which is the whole image."""
    row, column = divmod(position, 4)
    if image < 4:
        return row, (column + 0.5) / 2 - 0.5
    return row, (3 - column if image == 7 else column)


def test_loss_is_of_positions_at_the_same_place():
    params, state = first()
    output, of_params, of_teacher = run()
    teacher = state["teacher"]
    y = [maps(params, state["batch_stats"], x, "projector", "propagation") for x in VIEWS]
    t = [maps(teacher["params"], teacher["batch_stats"], x, "projector") for x in VIEWS]
    total, reach = 0.0, 0.4 * np.sqrt(2)  # in cells of the first view, which are the larger ones
    for image in range(8):
        pairs = [
            (s, o)
            for s in range(16)
            for o in range(16)
            if np.hypot(*(np.array(divmod(s, 4)) - place(image, o))) < reach
        ]
        total += np.mean([-2 * y[0][image, s] @ t[1][image, o] for s, o in pairs])
        total += np.mean([-2 * y[1][image, o] @ t[0][image, s] for s, o in pairs])
    np.testing.assert_allclose(output.loss, total / 8, rtol=1e-4)
    assert output.metrics["overlapping"] == 1.0 and output.embeddings.shape == (2, 8, 6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(of_params["propagation"]["MLP_0"]["Dense_0"]["kernel"]))


@pytest.mark.parametrize("layers, sharpness", [(0, 1.0), (1, 2.0)])
def test_propagation_is_a_sum_of_all_values_by_similarity(layers, sharpness):
    module = Propagation(layers, sharpness)
    z = np.random.default_rng(3).normal(size=(2, 2, 3, 4)).astype(np.float32)
    variables = module.init(jax.random.key(0), z)
    value = z.reshape(2, 6, 4).astype(np.float64)
    if layers:
        dense = variables["params"]["MLP_0"]["Dense_0"]
        value = value @ dense["kernel"] + dense["bias"]
    value /= np.linalg.norm(value, axis=-1, keepdims=True)
    expected = np.zeros((2, 6, 4))
    for image, rows in enumerate(z.reshape(2, 6, 4)):
        for s in range(6):
            for t in range(6):
                cosine = rows[s] @ rows[t] / np.linalg.norm(rows[s]) / np.linalg.norm(rows[t])
                expected[image, s] += max(cosine, 0) ** sharpness * value[image, t]
    np.testing.assert_allclose(module.apply(variables, z), expected, rtol=1e-4, atol=1e-5)


def test_the_teacher_has_no_propagation_and_its_decay_goes_to_one():
    params, state = first()
    assert set(state["teacher"]["params"]) == {"backbone", "projector"}
    moved = make(decay=0.9).update(params, state, jnp.array(50))["teacher"]["params"]["projector"]
    old = state["teacher"]["params"]["projector"]
    expected = jax.tree.map(lambda t, p: 0.95 * t + 0.05 * p, old, params["projector"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), moved, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sharpness": 0.5}, "sharpness must be at least 1, got 0.5"),
        ({"reach": 0.0}, "reach must be above 0, got 0.0"),
        ({"transform_layers": -1}, "transform_layers must be at least 0, got -1"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_refuses_a_network_without_a_feature_map():
    vit = models.create("vit_tiny_patch16_224", dim=24, depth=1, heads=2, patch_size=8, image_size=16)
    with pytest.raises(ValueError, match="PixPro needs a feature map, which ViT does not have; use a ResNet"):
        METHODS["pixpro"](vit, make().schedule)
