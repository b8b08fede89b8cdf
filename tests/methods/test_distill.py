import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import config as configs
from ssl_jax import losses, models, weights
from ssl_jax.methods import METHODS, Schedule, Teacher
from ssl_jax.models import maps
from ssl_jax.training import build
from tests.methods import drawn
from tests.methods.teachers import saved

RUN = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60)
RNG = np.random.default_rng(0)
LARGE = jnp.asarray(RNG.normal(size=(6, 12, 12, 1)), jnp.float32)
SMALL = tuple(jnp.asarray(RNG.normal(size=(2, 6, 8, 8, 1)), jnp.float32))
STUDENT = models.create("resnet8", stages=(1, 1), base_width=4)
VIT = dict(dim=8, depth=1, heads=2, patch_size=4, image_size=12)


def made(backbone=STUDENT, of=None, scale=(0.5,), offset=(0.25,), **options):
    """The method with a teacher of random weights, by default a resnet8 of one stage."""
    model = models.create("resnet8", stages=(1,), base_width=8) if of is None else of
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 12, 12, len(scale))))
    rng = np.random.default_rng(5)
    variables = jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32) ** 2, variables)
    teacher = Teacher(model, variables, scale, offset)
    return METHODS["distill"](backbone, RUN, loaded=teacher, **{"projector": (16,), **options})


def run(method, *views, step=0):
    """(params, state before and after, output), of random weights and the teacher's own."""
    params, state = drawn.draw(method, views[0][:1])
    state |= method.constants | {"step": jnp.int32(step)}
    output = jax.device_get(method.loss(params, state, {"views": views}, jax.random.key(3)))
    return params, state, output


def standardized(target, mean, deviation):
    return (target - mean) / (deviation + 1e-6)


def by_hand(method, params, state, statistics, x, seen):
    """Loss of the views x [batch, ...] of one size, which the teacher sees as `seen`."""
    model, backbone = method.frozen.model, method.backbone
    target = model.apply(state["teacher"], seen, method="feature_map")
    variables = {"params": params["backbone"], "batch_stats": state["batch_stats"]["backbone"]}
    h, _ = backbone.apply(variables, x, train=True, method="feature_map", mutable=["batch_stats"])
    resized = jax.image.resize(target, (*h.shape[:3], target.shape[3]), "bilinear")
    of = {"whole": (h.mean((1, 2)), target.mean((1, 2))), "places": (h, resized)}
    found = {}
    for kind, (h, target) in of.items():
        prediction = method.head.apply({"params": params[kind]}, h)
        target = standardized(target, **statistics[kind])
        found[kind] = losses.feature_distillation(prediction, target)
    return found


def test_the_loss_is_that_of_features_standardized_by_the_large_views():
    """The first batch's statistics alone, and both sizes of views."""
    method = made(local_views=2, places=0.5)
    params, state, output = run(method, LARGE, *SMALL)
    target = method.frozen.model.apply(state["teacher"], 0.5 * LARGE + 0.25, method="feature_map")
    statistics = {
        "whole": dict(mean=target.mean((0, 1, 2)), deviation=target.mean((1, 2)).std(0)),
        "places": dict(mean=target.mean((0, 1, 2)), deviation=target.std((0, 1, 2))),
    }
    for kind in ("whole", "places"):
        for name, expected in statistics[kind].items():
            np.testing.assert_allclose(output.state["statistics"][kind][name], expected, rtol=1e-4, atol=1e-6)
    # Small crops of an image lie side by side in BatchNorm's batch, whose statistics have no order.
    groups = [LARGE, jnp.stack(SMALL, 1).reshape(-1, 8, 8, 1)]
    large, small = (by_hand(method, params, state, statistics, x, 0.5 * x + 0.25) for x in groups)
    total = sum(weight * (large[kind] + 2 * small[kind]) for kind, weight in (("whole", 1.0), ("places", 0.5)))
    np.testing.assert_allclose(output.loss, total / 3 / 1.5, rtol=1e-4)


def test_statistics_move_slower_and_slower_and_the_teacher_never():
    method = made()
    _, begun, output = run(method, LARGE, step=50)
    first = run(method, LARGE, step=0)[2].state["statistics"]["whole"]["mean"]
    old = begun["statistics"]["whole"]["mean"]
    rate = 0.001 + 0.999 / 2  # half a cosine at half of the steps
    moved = output.state["statistics"]["whole"]["mean"]
    np.testing.assert_allclose(moved, old + rate * (first - old), rtol=1e-4, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, output.state["teacher"], method.frozen.variables)


def test_a_student_that_gives_the_teachers_standardized_features_has_no_loss():
    """By the identity as a projector, of a student that is the teacher and sees what it sees."""
    model = models.create("vit_tiny_patch16_224", **VIT)
    method = made(model, model, scale=(1.0,), offset=(0.0,), projector=())
    params, state, _ = run(method, LARGE)
    teacher = method.frozen.variables
    h, places = maps.both(model, model.apply(teacher, LARGE, method="tokens"), LARGE)
    params["backbone"] = teacher["params"]
    for kind, rows in (("whole", h), ("places", places.reshape(-1, 8))):
        mean, deviation = rows.mean(0), rows.std(0) + 1e-6
        params[kind] = {"Dense_0": {"kernel": jnp.diag(1 / deviation), "bias": -mean / deviation}}
    state["step"] = jnp.int32(0)
    output = method.loss(params, state, {"views": (LARGE,)}, jax.random.key(3))
    assert abs(output.loss) < 1e-4
    assert output.metrics["teacher_cosine"] == pytest.approx(1.0, abs=1e-4)
    params["whole"]["Dense_0"]["bias"] += 1.0
    assert method.loss(params, state, {"views": (LARGE,)}, jax.random.key(3)).loss > 0.05


@pytest.mark.parametrize(
    "model, kinds",
    [
        (dict(VIT), ("whole", "places")),
        (dict(VIT, pool="norm_mean"), ("whole", "places")),
        (dict(VIT, pool="mean"), ("whole",)),  # which has no features of patches
    ],
)
def test_features_of_whole_images_and_places_are_those_of_the_network(model, kinds):
    teacher = models.create("vit_tiny_patch16_224", **model)
    method = made(of=teacher)
    found = method.targets(method.constants["teacher"], LARGE)
    assert tuple(found) == method.kinds == kinds
    seen = 0.5 * LARGE + 0.25
    np.testing.assert_allclose(found["whole"], teacher.apply(method.frozen.variables, seen), rtol=1e-4, atol=1e-5)
    if "places" in kinds:
        expected = maps.patch_map(teacher, method.frozen.variables, seen)
        np.testing.assert_allclose(found["places"], expected, rtol=1e-4, atol=1e-5)
    assert made(of=teacher, places=0.0).kinds == ("whole",)


def test_the_teacher_sees_views_in_its_own_channels_and_size():
    vit = models.create("vit_tiny_patch16_224", **(VIT | dict(patch_size=5, image_size=10)))
    teacher = Teacher(vit, {}, scale=(1.0, 2.0, 3.0), offset=(0.0, 0.5, 1.0))
    assert teacher.sees(LARGE, 0).shape == (6, 10, 10, 3)  # the nearest that patches of 5 divide
    assert teacher.sees(LARGE, 25).shape == (6, 25, 25, 3)
    same = dataclasses.replace(teacher, model=STUDENT).sees(LARGE, 0)
    np.testing.assert_allclose(same, np.concatenate([LARGE, 2 * LARGE + 0.5, 3 * LARGE + 1], axis=-1), rtol=1e-6)


def config_of(path, **options):
    config = configs.get_config("distill:tiny").unlock()
    config.method.update(teacher=str(path), **options)
    config.model.update(stages=(1,))
    config.update(steps=3, batch_size=8)
    return config


def build_of(config):
    config = configs.parse(config)
    return build.method(config, build.schedule(config, 32, 0))


def test_a_teacher_undoes_the_views_normalization_and_does_its_own():
    config = config_of(saved())
    teacher = build_of(config).frozen
    image = np.float32([[[[0.2]]]])
    view = jnp.asarray((image - np.float32(config.data.mean)) / np.float32(config.data.std))
    np.testing.assert_allclose(teacher.sees(view, 0), (image - 0.3) / 0.5, rtol=1e-5)


@pytest.mark.parametrize(
    "path, options, message",
    [
        ("", {}, r"config\.method: Distill needs a teacher; say --config\.method\.teacher=PATH"),
        ("nowhere.safetensors", {}, r"config\.method\.teacher: no file nowhere\.safetensors"),
        (saved, dict(cosine=0.0, smooth_l1=0.0), "leave no loss"),
    ],
)
def test_what_cannot_be_is_refused(path, options, message):
    with pytest.raises(configs.ConfigError, match=message):
        build_of(config_of(path() if callable(path) else path, **options))


def test_a_teacher_of_other_channels_is_refused():
    config = config_of(saved(3))
    assert build_of(config).frozen.sees(jnp.ones((1, 4, 4, 1)), 0).shape[-1] == 3  # gray images have one for all
    config.data.update(channels=2, mean=(0.5, 0.5), std=(0.5, 0.5))
    with pytest.raises(configs.ConfigError, match=r"takes images of 3 channels, but these have 2"):
        build_of(config)


def test_a_run_goes_on_with_the_same_teacher_only_and_checkpoints_have_none(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (32, 28, 28, 1), np.uint8)
    teacher = tmp_path / "teacher"
    teacher.mkdir()

    def put(source):
        for file in source.iterdir():
            (teacher / file.name).write_bytes(file.read_bytes())

    put(saved())
    config, workdir = config_of(teacher), tmp_path / "run"
    run = ssl_jax.pretrain(config, images, workdir=workdir)
    assert len(run.facts["constants"]["teacher"]) == 64  # SHA-256 in hexadecimal
    held = [json.loads(path.read_text()) for path in workdir.glob("checkpoints/*/state/_METADATA")]
    assert held and all("statistics" in str(tree) and "'teacher'" not in str(tree) for tree in held)
    again = ssl_jax.pretrain(config, images, workdir=workdir)
    np.testing.assert_array_equal(again.backbone.features(images[:2]), run.backbone.features(images[:2]))
    other = jax.device_get(ssl_jax.load_backbone(teacher).variables)
    other = jax.tree.map(lambda x: x + 1, other)
    weights.save_backbone(teacher, other, json.loads((teacher / "backbone.json").read_text()))
    with pytest.raises(configs.ConfigError, match=r"began with another teacher: its digest was .* restore the teacher"):
        ssl_jax.pretrain(config, images, workdir=workdir)
