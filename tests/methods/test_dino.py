import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models, optim
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)


def vit(**options):
    return models.create(
        "vit_tiny_patch16_224", dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16, **options
    )


def make(backbone=None, **options):
    options = dict(local_views=2, prototypes=12, hidden=(8,), bottleneck=4) | options
    return METHODS["dino"](backbone or vit(), RUN, **options)


def draw_views(local_views=2):
    keys = jax.random.split(jax.random.key(0), 2 + local_views)
    sizes = [16, 16] + [8] * local_views
    return tuple(jax.random.normal(key, (6, size, size, 1)) for key, size in zip(keys, sizes, strict=True))


def after_some_steps(method):
    """(params, state) with a teacher of its own, a center, and a step within the temperature's warm-up."""
    params, state = method.init(jax.random.key(1), draw_views()[0][:1])
    other, _ = method.init(jax.random.key(2), draw_views()[0][:1])
    state["teacher"]["params"] = other
    state["center"] = 0.1 * jax.random.normal(jax.random.key(3), state["center"].shape)
    return params, {**state, "step": jnp.asarray(10, jnp.int32)}


def scores_of(method, params, x):
    networks = method.networks
    return networks["head"].apply(
        {"params": params["head"]}, networks["backbone"].apply({"params": params["backbone"]}, x)
    )


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("local_views", [0, 2])
def test_loss_is_the_papers_over_all_pairs_of_different_views(local_views):
    method = make(
        local_views=local_views, warmup_teacher_temperature=0.03, teacher_temperature=0.07, warmup_temperature_epochs=4
    )
    views = draw_views(local_views)
    params, state = after_some_steps(method)
    loss, (_, metrics) = method.loss(params, state, {"views": views}, jax.random.key(4))
    student = [np.asarray(scores_of(method, params, x), np.float64) for x in views]
    teacher = [np.asarray(scores_of(method, state["teacher"]["params"], x), np.float64) for x in views[:2]]
    temperature = 0.03 + (0.07 - 0.03) * 10 / 40  # step 10 of 4 epochs of 10
    targets = [softmax((t - np.asarray(state["center"])) / temperature) for t in teacher]
    pairs = [
        np.mean(-np.sum(t * np.log(softmax(s / 0.1)), axis=-1))
        for i, t in enumerate(targets)
        for j, s in enumerate(student)
        if i != j
    ]
    assert len(pairs) == 2 * (2 + local_views) - 2
    np.testing.assert_allclose(loss, np.mean(pairs), rtol=1e-4)  # cosines of 1e-7, times 1 / 0.04
    entropies = [-np.sum(t * np.log(t), axis=-1) for t in targets]
    np.testing.assert_allclose(metrics["teacher_entropy"], np.mean(entropies), rtol=1e-4)


def test_center_moves_a_tenth_towards_the_teachers_mean_score_of_the_large_crops():
    method, views = make(), draw_views()
    params, state = after_some_steps(method)
    _, (new, _) = method.loss(params, state, {"views": views}, jax.random.key(4))
    mean = jnp.mean(jnp.stack([scores_of(method, state["teacher"]["params"], x) for x in views[:2]]), axis=(0, 1))
    np.testing.assert_allclose(new["center"], 0.9 * state["center"] + 0.1 * mean, rtol=1e-4, atol=1e-6)


def test_teacher_moves_by_a_decay_that_ends_at_one():
    method = make(decay=0.9)
    params, state = after_some_steps(method)
    start = method.update(params, state, 0)
    expected = optim.ema(state["teacher"]["params"], params, 0.9)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), start["teacher"]["params"], expected)
    halfway = method.update(params, state, 50)
    expected = optim.ema(state["teacher"]["params"], params, 0.95)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), halfway["teacher"]["params"], expected)
    end = method.update(params, state, 100)
    jax.tree.map(np.testing.assert_array_equal, end["teacher"]["params"], state["teacher"]["params"])
    assert end["step"] == 100 and end["step"].dtype == jnp.int32


def test_prototypes_stay_for_the_first_epoch():
    method = make(freeze_epochs=1)
    params, _ = after_some_steps(method)
    tx, _ = optim.create("sgd", lr=0.1, warmup_steps=0, steps=100, frozen_steps=method.frozen_steps)
    opt_state = tx.init(params)
    grads = jax.tree.map(jnp.ones_like, params)
    moved = []
    for _ in range(11):
        updates, opt_state = tx.update(grads, opt_state, params)
        moved.append(bool(jnp.any(updates["head"]["last"]["kernel"])))
        assert jnp.any(updates["head"]["mlp"]["Dense_0"]["kernel"])
    assert moved == [False] * 10 + [True]
    assert make(freeze_epochs=0).frozen_steps == {}


def test_head_is_the_authors():
    method = make(norm_last_layer=False)
    params, _ = method.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    shapes = jax.tree.map(jnp.shape, params["head"])
    assert shapes == {
        "mlp": {"Dense_0": {"kernel": (16, 8), "bias": (8,)}, "Dense_1": {"kernel": (8, 4), "bias": (4,)}},
        "last": {"kernel": (4, 12), "gain": (12,)},
    }
    params, _ = make().init(jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    assert "gain" not in params["head"]["last"]


def test_batch_norm_of_the_head_spans_all_crops_and_the_teachers_is_its_own():
    method = make(models.create("resnet8", stages=(1,)), head_norm=True)
    views = draw_views()
    params, state = method.init(jax.random.key(1), views[0][:1])
    _, (new, _) = method.loss(params, state, {"views": views}, jax.random.key(4))

    def mean_before_norm(crops):
        backbone = {"params": params["backbone"], "batch_stats": state["batch_stats"]["backbone"]}
        h = [
            method.backbone.apply(backbone, jnp.concatenate(some), train=True, mutable=["batch_stats"])[0]
            for some in crops
        ]
        return jnp.mean(jnp.concatenate(h) @ params["head"]["mlp"]["Dense_0"]["kernel"], axis=0)

    mean = new["batch_stats"]["head"]["mlp"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * mean_before_norm([views[:2], views[2:]]), rtol=1e-3, atol=1e-6)
    mean = new["teacher"]["batch_stats"]["head"]["mlp"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(mean, 0.1 * mean_before_norm([views[:2]]), rtol=1e-3, atol=1e-6)


def test_features_are_the_teachers():
    method = make()
    params, state = after_some_steps(method)
    x = draw_views()[0]
    expected = method.backbone.apply({"params": state["teacher"]["params"]["backbone"]}, x)
    np.testing.assert_array_equal(method.features(params, state, x), expected)


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
        ({"prototypes": 0}, "prototypes must be above 0, got 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
