import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, optim
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

SCHEDULE = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(6, size, size, 1)).astype(np.float32) for size in (16, 16, 8, 8))
TEMPERATURES = dict(warmup_teacher_temperature=0.03, teacher_temperature=0.07, warmup_temperature_epochs=4)


def make(backbone=None, **options):
    vit = dict(dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16)
    options = dict(local_views=2, prototypes=12, hidden=(8,), bottleneck=4) | options
    return METHODS["dino"](backbone or models.create("vit_tiny_patch16_224", **vit), SCHEDULE, **options)


def shapes_of(method):
    """(params, state)"""
    return jax.eval_shape(method.init, jax.random.key(0), VIEWS[0])


@functools.cache
def setup():
    """(params, state within the temperature's warm-up, {what a step makes of them})"""
    method, alone = make(decay=0.9, **TEMPERATURES), make(local_views=0, **TEMPERATURES)
    params, state = drawn.draw(method, VIEWS[0])
    state["step"] = np.array(10, np.int32)

    @jax.jit
    def run(params, state, views, rng):
        def features(params, *some):
            return method.backbone.apply({"params": params["backbone"]}, jnp.concatenate(some))

        def scores(params, *h):
            return method.networks["head"].apply({"params": params["head"]}, jnp.concatenate(h).reshape(-1, 6, 16))

        teacher = state["teacher"]["params"]
        of_teacher = features(teacher, *views[:2])
        return {
            "outputs": [
                method.loss(params, state, {"views": views}, rng),
                alone.loss(params, state, {"views": views[:2]}, rng),
            ],
            "student": scores(params, features(params, *views[:2]), features(params, *views[2:])),
            "teacher": scores(teacher, of_teacher),
            "moved": jax.vmap(lambda step: method.update(params, state, step))(jnp.array([0, 50, 100])),
            "features": (method.features(params, state, views[0]), of_teacher[:6]),
        }

    return params, state, jax.device_get(run(params, state, VIEWS, jax.random.key(4)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("local_views", [0, 2])
def test_loss_is_the_papers_over_all_pairs_of_different_views(local_views):
    _, state, made = setup()
    output = made["outputs"][local_views == 0]
    student, teacher = (made[name].astype(np.float64) for name in ("student", "teacher"))
    temperature = 0.03 + (0.07 - 0.03) * 10 / 40  # step 10 of 4 epochs of 10
    targets = softmax((teacher - state["center"]) / temperature)
    pairs = [
        np.mean(-np.sum(t * np.log(softmax(s / 0.1)), axis=-1))
        for i, t in enumerate(targets)
        for j, s in enumerate(student[: 2 + local_views])
        if i != j
    ]
    assert len(pairs) == 2 * (2 + local_views) - 2
    np.testing.assert_allclose(output.loss, np.mean(pairs), rtol=1e-4)  # cosines of 1e-7, times 1 / 0.04
    entropy = np.mean(-np.sum(targets * np.log(targets), -1))
    np.testing.assert_allclose(output.metrics["teacher_entropy"], entropy, rtol=1e-4)


def test_center_moves_a_tenth_towards_the_teachers_mean_score_of_the_large_crops():
    _, state, made = setup()
    for output in made["outputs"]:
        expected = 0.9 * state["center"] + 0.1 * made["teacher"].mean((0, 1))
        np.testing.assert_allclose(output.state["center"], expected, rtol=1e-4, atol=1e-6)


def test_teacher_moves_by_a_decay_that_ends_at_one():
    params, state, made = setup()
    old, moved = state["teacher"]["params"], made["moved"]

    def check(moved, old, new):
        for got, decay in zip(moved, (0.9, 0.95, 1.0), strict=True):
            np.testing.assert_allclose(got, decay * old + (1 - decay) * new, atol=1e-6)
        np.testing.assert_array_equal(moved[2], old)

    jax.tree.map(check, moved["teacher"]["params"], old, params)
    np.testing.assert_array_equal(moved["step"], np.array([0, 50, 100], np.int32), strict=True)


def test_prototypes_stay_for_the_first_epoch():
    method = make(freeze_epochs=1)
    tx, _ = optim.create("sgd", lr=0.1, warmup_steps=0, steps=100, frozen_steps=method.frozen_steps)

    @jax.jit
    def run(params):
        def step(opt_state, _):
            updates, opt_state = tx.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
            return opt_state, updates["head"]

        return jax.lax.scan(step, tx.init(params), length=11)[1]

    updates = jax.device_get(run(setup()[0]))
    assert [np.any(update) for update in updates["last"]["kernel"]] == [False] * 10 + [True]
    assert all(np.any(update) for update in updates["mlp"]["Dense_0"]["kernel"])
    assert make(freeze_epochs=0).frozen_steps == {}


def test_head_is_the_authors():
    assert jax.tree.map(jnp.shape, shapes_of(make(norm_last_layer=False))[0]["head"]) == {
        "mlp": {"Dense_0": {"kernel": (16, 8), "bias": (8,)}, "Dense_1": {"kernel": (8, 4), "bias": (4,)}},
        "last": {"kernel": (4, 12), "gain": (12,)},
    }
    assert "gain" not in shapes_of(make())[0]["head"]["last"]


def test_batch_norm_of_the_head_spans_all_crops_and_the_teachers_is_its_own():
    method = make(models.create("resnet8", stages=(1,)), head_norm=True)

    def mean_before_norm(variables, crops):
        backbone = {kind: of_kind["backbone"] for kind, of_kind in variables.items()}
        h = [
            method.backbone.apply(backbone, jnp.concatenate(some), train=True, mutable=["batch_stats"])[0]
            for some in crops
        ]
        return jnp.mean(jnp.concatenate(h) @ variables["params"]["head"]["mlp"]["Dense_0"]["kernel"], axis=0)

    @jax.jit
    def run(params, state, views):
        student = {"params": params, "batch_stats": state["batch_stats"]}
        return (
            method.loss(params, state, {"views": views}, jax.random.key(4)).state,
            mean_before_norm(student, [views[:2], views[2:]]),
            mean_before_norm(state["teacher"], [views[:2]]),
        )

    params, state = drawn.draw(method, VIEWS[0])
    new, *means = jax.device_get(run(params, state, VIEWS))
    for before, after, mean in zip((state, state["teacher"]), (new, new["teacher"]), means, strict=True):
        old, moved = (tree["batch_stats"]["head"]["mlp"]["BatchNorm_0"]["mean"] for tree in (before, after))
        np.testing.assert_allclose(moved, 0.9 * old + 0.1 * mean, rtol=1e-3, atol=1e-6)


def test_features_are_the_teachers():
    found, expected = setup()[2]["features"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_views_are_two_large_crops_and_as_many_small_ones_as_asked_for():
    assert make(local_views=0).views == ("global1", "global2")
    assert make(local_views=3).views == ("global1", "global2", "local", "local", "local")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"teacher_temperature": 0.1}, "teacher_temperature=0.1 must be below student_temperature=0.1"),
        ({"warmup_teacher_temperature": 0.2}, "warmup_teacher_temperature=0.2 must be below"),
        ({"local_views": -1}, "local_views must be at least 0, got -1"),
        ({"freeze_epochs": -1}, "freeze_epochs must be at least 0, got -1"),
        ({"center_decay": 1.1}, "center_decay must be in 0..1, got 1.1"),
        ({"prototypes": 0}, "prototypes must be at least 1, got 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
