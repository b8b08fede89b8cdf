import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.detcon import pool
from tests.methods import drawn

VIEWS = tuple(np.random.default_rng(0).normal(size=(3, 8, 8, 8, 1)).astype(np.float32))
WHOLE, LEFT = ([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5, 0.0, 0.0])
BOXES = tuple(np.array([box] * 8, np.float32) for box in (WHOLE, LEFT, WHOLE))
INDEX = np.arange(8, dtype=np.int32)


def make(**options):
    schedule = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
    options = dict(projector=(12, 6), predictor=(10, 6), segments=3, grid=2, place_weight=1000.0) | options
    return METHODS["detcon"](models.create("resnet8", stages=(1,)), schedule, **options)


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*jax.device_get(jax.jit(make().init)(jax.random.key(1), VIEWS[0])))


@functools.cache
def run():
    method = make()

    @jax.jit
    def run(params, state, views, boxes, index):
        batch = {"views": views, "boxes": boxes, "index": index}

        def loss(params, teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, batch, jax.random.key(2))
            return output.loss, output

        gradients, output = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, state["teacher"]["params"])
        ids = []
        for number, segments in enumerate(SEGMENTS):
            _, rng_draw = jax.random.split(jax.random.fold_in(jax.random.key(2), number))
            keys = jax.vmap(jax.random.fold_in, (None, 0))(rng_draw, index)
            ids.append(method.draw(jnp.broadcast_to(jnp.array(segments), (8, 16)), keys))
        return output, *gradients, ids

    return jax.device_get(run(*first(), VIEWS, BOXES, INDEX))


# Of maps of 4 x 4: the first view has the whole grid of 2 x 2, the second one its left half.
SEGMENTS = (
    np.arange(4).reshape(2, 2).repeat(2, 0).repeat(2, 1).ravel(),
    np.array([0, 2]).reshape(2, 1).repeat(2, 0).repeat(4, 1).ravel(),
)


def apply(params, batch_stats, x, number, ids, *names):
    """Projections, and predictions, of the drawn segments [8, 3, dim]."""
    variables = {"params": params["backbone"], "batch_stats": batch_stats["backbone"]}
    h, _ = make().backbone.apply(variables, x, train=True, mutable=["batch_stats"], method="feature_map")
    h = np.asarray(h).reshape(8, 16, -1)
    h = np.stack([[row[SEGMENTS[number] == i].mean(0) for i in of] for row, of in zip(h, ids, strict=True)])
    for name in names:
        variables = {"params": params[name], "batch_stats": batch_stats[name]}
        h, _ = make().networks[name].apply(variables, jnp.asarray(h), train=True, mutable=["batch_stats"])
    return h


def test_loss_is_of_features_averaged_over_segments_of_the_image():
    params, state = first()
    output, _, of_teacher, ids = run()
    assert set(np.unique(ids[0])) == {0, 1, 2, 3} and set(np.unique(ids[1])) == {0, 2}
    teacher, stats = state["teacher"], state["batch_stats"]
    both = list(enumerate(zip(VIEWS, ids, strict=False)))
    p = [apply(params, stats, x, number, of, "projector", "predictor") for number, (x, of) in both]
    t = [apply(teacher["params"], teacher["batch_stats"], x, number, of, "projector") for number, (x, of) in both]
    expected = losses.detcon(tuple(p), tuple(t), tuple(map(jnp.asarray, ids)), temperature=0.1)
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    shared = np.mean([[i in there for i in here] for here, there in zip(*ids, strict=True)])
    np.testing.assert_allclose(output.metrics["segments_in_both"], shared)
    assert output.embeddings.shape == (2, 8, 6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))


def test_segments_are_drawn_evenly_among_those_that_a_view_shows():
    segments = jnp.array([[0, 0, 0, 3], [1, 1, 1, 1]])
    drawn = np.asarray(make(segments=2000).draw(segments, jax.random.split(jax.random.key(0), 2)))
    assert set(np.unique(drawn[0])) == {0, 3} and set(np.unique(drawn[1])) == {1}
    assert 0.45 < np.mean(drawn[0] == 0) < 0.55


def test_pool_is_the_mean_over_a_segments_positions():
    h = jnp.arange(8.0).reshape(1, 2, 2, 2)
    np.testing.assert_allclose(
        pool(h, jnp.array([[5, 5, 5, 1]]), jnp.array([[1, 5, 1]])), [[[6, 7], [2, 3], [6, 7]]], rtol=1e-6
    )


def test_the_teacher_has_no_predictor_and_its_decay_goes_to_one():
    params, state = first()
    assert set(state["teacher"]["params"]) == {"backbone", "projector"}
    moved = make(decay=0.9).update(params, state, jnp.array(50))["teacher"]["params"]["projector"]
    old = state["teacher"]["params"]["projector"]
    expected = jax.tree.map(lambda t, p: 0.95 * t + 0.05 * p, old, params["projector"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), moved, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"grid": 0}, "grid must be at least 1, got 0"),
        ({"place_weight": -1.0}, "place_weight must be at least 0, got -1.0"),
        ({"predictor": (10, 5)}, "ends in 5 dimensions, not in the projector's 6"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_refuses_a_network_without_a_feature_map():
    vit = models.create("vit_tiny_patch16_224", dim=24, depth=1, heads=2, patch_size=8, image_size=16)
    with pytest.raises(ValueError, match="DetCon needs a feature map, which ViT does not have; use a ResNet"):
        METHODS["detcon"](vit, make().schedule)
