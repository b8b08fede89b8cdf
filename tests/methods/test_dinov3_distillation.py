import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import config, models
from ssl_jax.methods import DINOv3Distillation, DINOv3Teacher, Schedule, Teacher
from ssl_jax.methods.toolkit.students import on_grid
from ssl_jax.models.heads import DINOHead
from ssl_jax.training import augmenting, build
from ssl_jax.training.checkpoint import Checkpoints
from tests.methods import drawn
from tests.methods.teachers import saved, saved_dinov3, with_teacher
from tests.methods.test_dinov2 import koleo, sinkhorn, softmax
from tests.methods.test_dinov3 import scores_of

RUN = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
VIEWS = tuple(RNG.normal(size=(6, size, size, 1)).astype(np.float32) for size in (16, 16, 8))
MASKS = RNG.random((2, 6, 16)) < 0.4
MASKS[:, 0] = False  # the first image has none
BATCH = {"views": VIEWS, "masks": tuple(MASKS)}
CONVNEXT = "convnext_atto(patch_size=2, base_width=8, stages=(1, 1))"  # places of 4 pixels
SCALE, OFFSET = 1.5, 0.2  # what the teacher sees of a view
STUDENT = ("class_loss", "patch_loss", "koleo")  # its metrics


def vit(**options):
    small = dict(dim=16, depth=1, heads=2, mlp_ratio=2.0, patch_size=4, image_size=16)
    return models.create("vit_small_patch16_dinov3", **{**small, **options})


def random(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), tree)


@functools.cache
def teacher():
    model = vit(dim=24)
    variables = jax.eval_shape(model.init, jax.random.key(0), VIEWS[0])
    heads = {
        name: DINOHead(prototypes, hidden=(8,), bottleneck=5, unit_prototypes=False)
        for name, prototypes in (("head", 12), ("patch_head", 10))
    }
    shapes = {name: jax.eval_shape(head.init, jax.random.key(0), np.zeros((1, 24))) for name, head in heads.items()}
    network = Teacher(model, random(variables, 1), (SCALE,), (OFFSET,))
    return DINOv3Teacher(network, {name: random(shape, 2)["params"] for name, shape in shapes.items()})


def make(backbone=None, students=(), **options):
    small: Any = dict(hidden=(8,), bottleneck=4, patch_hidden=(8,), patch_bottleneck=6, loaded=teacher())
    further = tuple(models.create(**models.described(text)) for text in students)
    options = dict(local_views=1, koleo_images=3, warmup_temperature_epochs=2) | small | options
    backbone = vit() if backbone is None else backbone
    return DINOv3Distillation(backbone, RUN, students=students, further=further, **options)


def convnext():
    return models.create(**models.described(CONVNEXT))


def after_some_steps(method):
    params, state = drawn.draw(method, VIEWS[0][:1])
    return params, {**state, "step": np.asarray(5, np.int32), **method.constants}


@functools.cache
def together():
    """(method, params, output) of a ViT and a ConvNeXt."""
    method = make(students=(CONVNEXT,))
    params, state = after_some_steps(method)
    return method, params, jax.jit(method.loss)(params, state, BATCH, jax.random.key(6))


def both_of(backbone, params, x):
    """(class token or features, features of places row by row)"""
    if hasattr(backbone, "tokens"):
        tokens = np.asarray(backbone.apply({"params": params}, x, method="tokens"), np.float64)
        return tokens[:, 0], tokens[:, backbone.num_prefix :]
    found = [backbone.apply({"params": params}, x, method=name) for name in ("__call__", "feature_map")]
    h, places = (np.asarray(y, np.float64) for y in found)
    return h, places.reshape(len(x), -1, places.shape[-1])


@pytest.mark.parametrize("number, suffix, label", [(0, "", ""), (1, "_convnext_atto", "convnext_atto_")])
def test_the_loss_of_a_student_is_dinov3s_with_the_targets_of_the_frozen_heads(number, suffix, label):
    method, params, output = together()
    frozen = teacher()
    whole = [both_of(frozen.network.model, frozen.network.variables["params"], SCALE * x + OFFSET) for x in VIEWS[:2]]
    temperature = 0.04 + 0.03 * 5 / 20
    scores = np.stack([scores_of(frozen.heads["head"], h) for h, _ in whole])
    targets = sinkhorn(scores.reshape(12, -1), temperature).reshape(scores.shape)
    patch_scores = np.stack([scores_of(frozen.heads["patch_head"], places) for _, places in whole])
    patch_targets = sinkhorn(patch_scores[MASKS], temperature)

    backbone = (method.backbone, *method.further)[number]
    seen = [both_of(backbone, params[f"backbone{suffix}"], x) for x in VIEWS]  # nothing is hidden
    logs = [np.log(softmax(scores_of(params[f"head{suffix}"], h) / 0.1)) for h, _ in seen]
    pairs = [(0, 1), (1, 0), (0, 2), (1, 2)]
    class_loss = sum(-np.mean(np.sum(targets[t] * logs[s], axis=-1)) for t, s in pairs) / len(pairs)
    of_patches = np.stack([scores_of(params[f"patch_head{suffix}"], places) for _, places in seen[:2]])
    terms = -np.sum(patch_targets * np.log(softmax(of_patches / 0.1))[MASKS], axis=-1)
    patch_loss = np.sum(terms * (MASKS / np.maximum(MASKS.sum(-1, keepdims=True), 1))[MASKS]) / 12
    spread = sum(np.mean([koleo(h[:3]), koleo(h[3:])]) for h, _ in seen[:2])
    found = [output.metrics[f"{label}{name}"] for name in STUDENT]
    np.testing.assert_allclose(np.array(found), np.array([class_loss, patch_loss, spread]), rtol=1e-3)


def test_the_loss_is_the_sum_of_the_students_and_only_the_first_one_is_watched():
    _, _, output = together()
    weights = dict(zip(STUDENT, (1.0, 1.0, 0.1), strict=True))
    expected = sum(
        weight * output.metrics[f"{label}{name}"]
        for label in ("", "convnext_atto_")
        for name, weight in weights.items()
    )
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    assert output.embeddings.shape == (2, 6, 16)


def test_a_student_learns_beside_others_what_it_learns_alone():
    def step(method, params):
        def loss(params, state, batch):
            output = method.loss(params, state, batch, jax.random.key(6))
            return output.loss, output.metrics

        return jax.jit(jax.grad(loss, has_aux=True))(params, after_some_steps(method)[1], BATCH)

    method, params, _ = together()
    beside, metrics = step(method, params)
    names = ("backbone", "head", "patch_head")
    for backbone, suffix in ((vit(), ""), (convnext(), "_convnext_atto")):
        alone, of_alone = step(make(backbone), {name: params[f"{name}{suffix}"] for name in names})
        label = f"{suffix[1:]}_" if suffix else ""
        np.testing.assert_allclose(of_alone["class_loss"], metrics[f"{label}class_loss"], rtol=1e-6)
        for name in names:
            for a, b in zip(*map(jax.tree.leaves, (alone[name], beside[f"{name}{suffix}"])), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
                assert np.any(b)


def test_further_students_do_not_change_how_the_first_begins():
    inits = (jax.jit(make(students=students).init) for students in ((), (CONVNEXT,)))
    (alone, _), (both, state) = (init(jax.random.key(3), VIEWS[0][:1]) for init in inits)
    jax.tree.map(np.testing.assert_array_equal, alone, {name: both[name] for name in alone})
    assert set(both) - set(alone) == {f"{name}_convnext_atto" for name in ("backbone", "head", "patch_head")}
    for name, average in state["ema"]["params"].items():
        jax.tree.map(np.testing.assert_array_equal, average, both[name])


def test_the_teacher_sees_the_large_crops_shrunk():
    method = make(teacher_scale=2)
    views = tuple(jnp.array(RNG.normal(size=(6, 32, 32, 1)).astype(np.float32)) for _ in range(2))
    h, places = method.see(jax.device_put(method.frozen.constants), views)
    assert places.shape == (2, 6, 4, 4, 24)
    small = jax.image.resize(views[1], (6, 16, 16, 1), "bilinear")  # antialiased
    frozen = method.frozen.network
    expected, _ = both_of(frozen.model, frozen.variables["params"], SCALE * small + OFFSET)
    np.testing.assert_allclose(h[1], expected, rtol=1e-3, atol=1e-4)
    assert method.mask_side == 8


def test_places_of_another_grid_are_resized_row_by_row():
    row, column = np.mgrid[0:8, 0:8].astype(np.float32)
    places = np.broadcast_to(np.stack([row, column], axis=-1), (2, 3, 8, 8, 2))
    found = np.asarray(on_grid(jnp.asarray(places), (4, 4))).reshape(2, 3, 4, 4, 2)
    np.testing.assert_allclose(found[0, 0, 1:3, 0, 0], [2.5, 4.5], atol=1e-5)  # the middle of two
    np.testing.assert_allclose(found[1, 2, 0, 1:3, 1], [2.5, 4.5], atol=1e-5)
    same = np.asarray(on_grid(jnp.asarray(places), (8, 8)))
    np.testing.assert_array_equal(same, places.reshape(2, 3, 64, 2))


def test_averages_of_all_students_are_kept_and_go_ever_slower():
    method = make(students=("resnet8(stages=(1,), base_width=4)",), decay=0.9)
    params, state = after_some_steps(method)
    after = method.update(params, state, jnp.asarray(50))
    kept = {"backbone": method.backbone_variables(params, after)}
    kept |= {f"backbone_{name}": part for name, part in method.further_variables(params, after).items()}
    assert set(kept) == {"backbone", "backbone_resnet8"}
    for name, variables in kept.items():
        now = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        before = {part: state["ema"][part][name] for part in now}
        expected = jax.tree.map(lambda a, b: 0.95 * a + 0.05 * b, before, now)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), variables, expected)
    assert jax.tree.leaves(kept["backbone_resnet8"]["batch_stats"])


def settings(**options):
    found = config.get_config("dinov3_distillation:tiny")
    found.method = {**found.method, **options}
    return found


def test_the_teacher_of_a_run_of_dinov3_has_its_heads():
    method = build.method(config.parse(with_teacher(settings(koleo_images=3))), RUN)
    assert isinstance(method, DINOv3Distillation)
    assert method.frozen.prototypes == {"head": 40, "patch_head": 30}
    assert [head.prototypes for head in method.heads.values()] == [40, 30]
    x = jnp.array(RNG.normal(size=(2, 28, 28, 1)).astype(np.float32))
    h, places = method.see(jax.device_put(method.constants["teacher"]), (x, x))
    assert (h.shape, places.shape) == ((2, 2, 32), (2, 2, 4, 4, 32))
    assert method.frozen.scores(method.constants["teacher"], "head", h).shape == (2, 2, 40)
    # The tests' teacher was trained with mean 0.3 and deviation 0.5, Fashion-MNIST has 0.286 and 0.353.
    np.testing.assert_allclose(method.frozen.network.sees(x, 0), (x * 0.353 + 0.286 - 0.3) / 0.5, atol=1e-5)


def test_another_run_is_no_teacher(tmp_path):
    for path in (tmp_path, saved()):
        found = config.parse(settings(teacher=str(path)))
        with pytest.raises(config.ConfigError, match="holds no run; give the directory of a run of dinov3"):
            build.method(found, RUN)


def test_masks_have_the_grid_of_the_teachers_patches():
    found = with_teacher(settings())
    found.model = dict(name="resnet8")
    found = config.parse(found)
    method = build.method(found, build.schedule(found, 1024, 10))
    mask, other, *small = augmenting.masks(found, method, augmenting.augmentations(found, method.views))
    assert mask is not None and mask.grid((28, 28)) == (4, 4) and other == mask and small == [None, None]


@pytest.mark.slow
def test_a_run_writes_a_file_for_each_student(tmp_path):
    found = settings(teacher=str(saved_dinov3()), students=("resnet8(stages=(1,), base_width=4)",), local_views=0)
    found.model.update(dim=16, depth=1)
    found.update(batch_size=32, steps=2, evaluate_every=0, checkpoint_every=1)
    found.optimizer.warmup_steps = 0
    images = ssl_jax.data.ArraySource(RNG.integers(0, 255, (64, 28, 28, 1), np.uint8))
    run = ssl_jax.pretrain(found, images, workdir=tmp_path)
    assert {"class_loss", "resnet8_class_loss"} <= set(run.metrics[-1])
    held = str(jax.tree.structure(Checkpoints(tmp_path / "checkpoints").newest()))
    assert "ema" in held and "network" not in held  # the teacher is in no checkpoint
    first, second = run.backbone, ssl_jax.load_backbone(tmp_path / "students" / "resnet8")
    assert (first.model.dim, second.model.dim) == (16, 4)
    kept = Checkpoints(tmp_path / "checkpoints").newest()
    assert kept is not None
    for part in ("params", "batch_stats"):
        expected = kept["model_state"]["ema"][part]["backbone_resnet8"]
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(second.variables[part]), expected)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loaded": None}, "say --config.method.teacher=PATH, the directory of a finished run of dinov3"),
        ({"students": (CONVNEXT, "convnext_atto")}, "names convnext_atto twice"),
        ({"students": ("resnet8(",)}, "is no network"),
        ({"backbone": vit(pool="norm_mean")}, "leave model.class_token=True and model.pool='cls'"),
        ({"backbone": nn.Dense(4)}, "a Dense has not; use a ViT, a ConvNeXt or a ResNet"),
        ({"teacher_temperature": 0.1}, "teacher_temperature=0.1 must be below student_temperature=0.1"),
        ({"koleo_images": 4}, "koleo_images=4 must be at least 2 and divide batch_size=6"),
        ({"teacher_scale": 0}, "teacher_scale must be at least 1, got 0"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_prototypes_of_all_students_stand_still_at_first():
    method = make(students=(CONVNEXT,), freeze_epochs=2)
    suffixes = ("", "_convnext_atto")
    assert method.still_steps == {f"{name}{s}/last": 20 for s in suffixes for name in ("head", "patch_head")}
