import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit.places import map_positions
from ssl_jax.methods.toolkit.segments import background, in_view, segment
from tests.methods import drawn

BATCH = 8
WHOLE, LEFT = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5, 0.0, 0.0]
BOXES = tuple(np.array([box] * BATCH, np.float32) for box in (WHOLE, LEFT, WHOLE, WHOLE))


def make(**options):
    schedule = Schedule(batch_size=BATCH, steps=100, steps_per_epoch=10, num_images=40)
    options = dict(large_views=2, local_views=1, projector=(12, 6), predictor=(10, 6), negatives=3) | options
    return METHODS["relic_v2"](models.create("resnet8", stages=(1,)), schedule, **options)


def objects():
    """Images of 8 x 8, dark but for an object in the middle."""
    images = 0.01 * np.random.default_rng(0).normal(size=(BATCH, 8, 8, 1)).astype(np.float32)
    images[:, 2:6, 3:6] += 2.0
    return images


def views():
    rng = np.random.default_rng(0)
    sides = (8, 8, 4)
    return (*(rng.normal(1.0, 1.0, (BATCH, side, side, 1)).astype(np.float32) for side in sides), objects())


def batch():
    return {"views": views(), "boxes": BOXES, "index": np.arange(BATCH, dtype=np.int32)}


@functools.cache
def first():
    """Params, and a state whose teacher is unlike them."""
    return drawn.with_other_teacher(*drawn.draw(make(), views()[0]))


@functools.cache
def run():
    """The output, the gradient for the teacher's weights, and what the loss is to be of."""
    method = make(mask_probability=1.0)

    @jax.jit
    def run(params, state, batch):
        def loss(teacher):
            moved = {**state, "teacher": {**state["teacher"], "params": teacher}}
            output = method.loss(params, moved, batch, jax.random.key(2))
            return output.loss, output

        teacher = state["teacher"]
        gradient, output = jax.grad(loss, has_aux=True)(teacher["params"])
        whole = batch["views"][-1]
        found = background(whole, segment(whole, 5, 1.0), 25)
        crops = list(batch["views"][:3])
        for number in range(2):
            removed = in_view(found, map_positions(batch["boxes"][number], (8, 8))).reshape(BATCH, 8, 8, 1)
            crops[number] = jnp.where(removed, 0.0, crops[number])
        p = jnp.stack([drawn.through(method.networks, params, state["batch_stats"], x) for x in crops])
        t = [drawn.through(method.teacher_networks, teacher["params"], teacher["batch_stats"], x) for x in crops[:2]]
        _, rng_negatives, _ = jax.random.split(jax.random.key(2), 3)
        negatives = method.draw(rng_negatives, crops[0], None)
        return output, gradient, losses.relic(p, jnp.stack(t), negatives, temperature=0.2)

    return jax.device_get(run(*first(), batch()))


def test_loss_is_of_each_crop_with_each_large_one_without_its_background():
    output, of_teacher, expected = run()
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    assert output.embeddings.shape == (2, BATCH, 6)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_teacher))


def test_the_background_of_a_share_of_the_large_crops_is_removed():
    removed = np.asarray(jax.jit(make(mask_probability=1.0).without_background)(batch(), jax.random.key(0)))
    inside = np.zeros((8, 8, 1), bool)
    inside[2:6, 3:6] = True
    of_left = np.repeat(inside, 2, axis=1)[:, :8]  # the second crop shows the left half
    for crop, x, shown in zip(removed, views(), (inside, of_left), strict=False):
        np.testing.assert_array_equal(crop, np.where(shown, x, 0.0))
    method = make(mask_probability=0.25, large_views=1)
    many = {"views": [jnp.ones((400, 1, 1, 1)), jnp.tile(objects(), (50, 1, 1, 1))]}
    many |= {"boxes": [jnp.tile(jnp.array(WHOLE), (400, 1)).at[:, 2:4].set(0.1)], "index": jnp.arange(400)}
    share = 1 - np.mean(jax.jit(method.without_background)(many, jax.random.key(0))[0])
    assert 0.2 < share < 0.3


def test_negatives_are_other_images_each_as_often():
    method = make(negatives=3)
    draw = jax.jit(lambda key: method.draw(key, jnp.zeros((BATCH, 1, 1, 1)), None))
    draws = np.stack([draw(jax.random.key(i)) for i in range(100)])
    assert draws.shape == (100, BATCH, 3)
    own = np.arange(BATCH)[:, None]
    assert np.all(draws != own) and np.all((draws >= 0) & (draws < BATCH))
    assert all(len(set(row)) == 3 for row in draws.reshape(-1, 3)), "no image is drawn twice"
    share = np.bincount(draws[:, 0].ravel(), minlength=BATCH)[1:] / 300
    assert np.all(np.abs(share - 1 / 7) < 0.06)


def test_views_follow_the_keys():
    assert make().views == ("global1", "global2", "local", "whole")
    assert make(large_views=3, local_views=0, mask_probability=0.0).views == ("global1", "global2", "global1")


def test_relic_has_no_predictor_if_its_layers_are_none():
    method = make(predictor=(), mask_probability=0.0, local_views=0, negatives=0)
    assert set(method.networks) == set(method.teacher_networks) == {"backbone", "projector"}
    params, state = jax.eval_shape(method.init, jax.random.key(0), views()[0])
    output = jax.eval_shape(method.loss, params, state, batch() | {"views": views()[:2]}, jax.random.key(0))
    assert output.loss.shape == () and output.embeddings.shape == (2, BATCH, 6)
    np.testing.assert_allclose(method.chance_level, np.log(BATCH))
    np.testing.assert_allclose(make().chance_level, np.log(4))


@pytest.mark.parametrize("step, decay", [(0, 0.9), (50, 0.95), (100, 1.0)])
def test_the_teachers_decay_goes_to_one(step, decay):
    params, state = first()
    moved = make(decay=0.9).update(params, state, jnp.array(step))["teacher"]["params"]["projector"]
    old = state["teacher"]["params"]["projector"]
    expected = jax.tree.map(lambda t, p: decay * t + (1 - decay) * p, old, params["projector"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), moved, expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"negatives": 8}, "negatives=8 are more than the 7 other images of a batch of 8; use 7 or less, or 0"),
        ({"predictor": (10, 5)}, "ends in 5 dimensions, not in the projector's 6"),
        ({"mask_probability": 1.5}, "mask_probability"),
        ({"large_views": 0}, "large_views must be at least 1, got 0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
