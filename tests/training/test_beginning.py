"""Runs that begin with given weights: config.begin."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import config as configs
from ssl_jax import data, dist, load_backbone, models, weights
from ssl_jax.config import ConfigError
from ssl_jax.evaluation import knn
from ssl_jax.evaluation.online import choose_images
from ssl_jax.training import build, reading
from ssl_jax.training.beginning import Beginning, load, show
from ssl_jax.training.build import Given
from ssl_jax.training.loop import Loop
from ssl_jax.training.measuring import measured
from ssl_jax.training.termination import Termination

RNG = np.random.default_rng(0)
LABELS = np.arange(48) % 2
# Of each label its own brightness, or neighbors would be chance.
IMAGES = np.clip(RNG.normal(90 + 6 * LABELS[:, None, None, None], 60, (48, 8, 8, 3)), 0, 255).astype(np.uint8)
RESNET = dict(name="resnet8", stages=(1,), base_width=8)
VIT = dict(name="vit_tiny_patch16_224", dim=16, depth=2, heads=2, patch_size=4, image_size=8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def save(directory, model, *, size=8, channels=3, seed=1):
    """Weights unlike those of an initialization, as `ssl_jax train` writes them."""
    module, images = models.create(**model), jnp.zeros((1, size, size, channels))
    draws = np.random.default_rng(seed)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: draws.uniform(0.1, 0.5, x.shape).astype(np.float32), shapes)
    variables = jax.tree.map(lambda x: x if x.ndim < 2 else x - 0.3, variables)
    meta = dict(model=model, image_size=[size, size], channels=channels, mean=MEAN[:channels], std=STD[:channels])
    directory.mkdir(exist_ok=True)
    weights.save_backbone(directory, variables, meta)
    return directory / weights.FILE


def simclr(begin):
    config = ssl_jax.get_config("simclr:tiny")
    config.update(begin=str(begin), batch_size=16, steps=2, log_every=1, checkpoint_every=1, evaluate_every=1)
    config.data.image_size = config.augment.view.size = (8, 8)
    config.data.update(channels=0, dtype="", mean=(), std=())
    config.augment.view.update(jitter=0.0, flip=0.0)
    config.method.projector = (4,)
    config.model = RESNET
    config.online_knn.update(bank=30, queries=18, k=3)
    return config


def dino(begin):
    config = ssl_jax.get_config("dino:tiny_vit")
    config.update(begin=str(begin), batch_size=16, steps=2, log_every=1, evaluate_every=0)
    config.data.update(image_size=(8, 8), channels=3, dtype="uint8", mean=MEAN, std=STD)
    config.method.update(local_views=0, prototypes=8, hidden=(8,), bottleneck=4)
    for view in ("global1", "global2"):
        config.augment[view].update(size=(8, 8), jitter=0.0, flip=0.0)
    with config.unlocked():
        del config.augment["local"]
    config.model = VIT
    return config


def first_state(config, workdir):
    """(the method, how images are normalized, the state before the first step)"""
    source = data.arrays(IMAGES, labels=LABELS)
    begin = Beginning(config, workdir, Given(), None)
    parsed = configs.parse(measured(config, source, None, begin.backbone))
    training = build.training(parsed, build.schedule(parsed, len(source), 2))
    loop = Loop(parsed, training, source, workdir, Termination(), begin.backbone(parsed))
    return training.method, reading.normalization(parsed), loop.restore()


@pytest.mark.parametrize("config_of, model", [(simclr, RESNET), (dino, VIT)])
def test_the_first_features_are_those_of_the_weights_bit_for_bit(config_of, model, tmp_path):
    file = save(tmp_path / "weights", model)
    method, normalization, state = first_state(config_of(file), tmp_path / "run")
    expected = load_backbone(file)
    features = expected.features(IMAGES)
    assert features.std(axis=0).max() > 1e-3

    def of(variables):
        return dataclasses.replace(expected, variables=variables, **dataclasses.asdict(normalization)).features(IMAGES)

    np.testing.assert_array_equal(of(method.backbone_variables(state.params, state.model_state)), features)
    student = {"params": state.params["backbone"], "batch_stats": state.model_state["batch_stats"].get("backbone", {})}
    np.testing.assert_array_equal(of(student), features)
    if "teacher" in state.model_state:
        teacher = state.model_state["teacher"]
        jax.tree.map(np.testing.assert_array_equal, teacher["params"]["backbone"], dict(expected.variables["params"]))


def knn_of(file, config):
    h = load_backbone(file).features(IMAGES)
    queries, bank = choose_images(len(IMAGES), config.online_knn.queries, config.online_knn.bank, config.seed, None)
    k, temperature = config.online_knn.k, config.online_knn.temperature
    predicted = knn.weighted_knn(h[bank], LABELS[bank], h[queries], num_classes=2, k=(k,), temperature=temperature)[k]
    return 100.0 * float(np.mean(predicted == LABELS[queries]))


def test_a_run_begins_with_the_weights_knn_and_goes_on_without_their_file(tmp_path, capsys):
    file = save(tmp_path / "weights", RESNET)
    config, workdir, source = simclr(file), tmp_path / "run", data.arrays(IMAGES, labels=LABELS)
    run = ssl_jax.pretrain(config, source, workdir=workdir)
    out = capsys.readouterr().out
    assert f"begins with the weights {file}" in out and "fitted" not in out
    assert "mean, std are those of the weights to begin with" in out
    first = run.metrics[0]
    assert first == {"step": 0, "knn_top1": knn_of(file, config)}
    assert 50.0 < first["knn_top1"] < 100.0  # neither chance nor what any features give
    begin = run.facts["begin"]
    assert begin["name"] == str(file) and not begin["given"]
    assert (run.backbone.mean, run.backbone.std) == (MEAN, STD)
    assert run.backbone.facts["begin"] == begin
    # With other weights under this name, the run is refused; without any, it goes on.
    before = file.read_bytes()
    save(tmp_path / "weights", RESNET, seed=2)
    for again in (workdir / "backbone.safetensors", workdir / "checkpoints" / "2"):
        shutil.rmtree(again) if again.is_dir() else again.unlink()
    with pytest.raises(ConfigError, match=rf"began with the weights .*{begin['digest']}.*restore that file, or use an"):
        ssl_jax.pretrain(config, source, workdir=workdir)
    file.unlink()
    again = ssl_jax.pretrain(config, source, workdir=workdir)
    assert "are no longer there; the run goes on from its checkpoint" in capsys.readouterr().out
    assert again.facts["begin"] == begin
    jax.tree.map(np.testing.assert_array_equal, again.backbone.variables, run.backbone.variables)
    # A script is refused likewise.
    (tmp_path / "weights").mkdir(exist_ok=True)
    file.write_bytes(before)
    with pytest.raises(ConfigError, match=r"begin is given, and config.begin="):
        ssl_jax.pretrain(config, source, workdir=workdir, begin=load_backbone(file))


def refused(config, message):
    config.data.update(channels=3, dtype="uint8", mean=MEAN, std=STD)
    with pytest.raises(ConfigError, match=message):
        load(configs.parse(config), Given())


def test_weights_that_do_not_fit_are_refused_with_the_model_that_would(tmp_path):
    file = save(tmp_path / "vit", VIT)
    flags = (
        r"It says that it is of vit_tiny_patch16_224: use --config.model.name=vit_tiny_patch16_224 "
        r"--config.model.depth=2 --config.model.dim=16 --config.model.heads=2$"
    )
    refused(simclr(file), flags)
    config = dino(file)
    config.model.depth = 3
    refused(config, r"has no tensor blocks.2[^\n]*\nIt says .* use --config.model.depth=2$")
    file = save(tmp_path / "given", RESNET)
    meta = json.loads(file.with_suffix(".json").read_text())
    tensors = load_backbone(file).variables
    weights.save_backbone(tmp_path / "given", tensors, meta | {"model": {"given": "Net(width=4)"}})
    config = simclr(file)
    config.model.base_width = 4
    refused(config, r"a network that a script gave: pretrain\(..., backbone=Net\(width=4\)\)")


def test_a_config_for_weights_says_what_to_give(tmp_path):
    for name in ("simclr", "dino", "dinov2", "dinov3", "mae"):
        config = ssl_jax.get_config(f"{name}:continue")
        with pytest.raises(ConfigError, match=r"needs some to begin with: --config.begin=FILE.safetensors, or the dir"):
            Beginning(config, tmp_path, Given(), None)
        config.begin = "nowhere.safetensors"
        with pytest.raises(ConfigError, match=r"config.begin: no file nowhere.safetensors \(looked from "):
            Beginning(config, tmp_path, Given(), None)


def test_weights_are_fitted_to_patches_positions_and_channels_and_it_is_said(tmp_path):
    file = save(tmp_path, VIT | dict(image_size=12), size=12, channels=1)
    config = configs.parse(dino(file))
    found = load(config, Given())
    said = show({"name": "w", "digest": "0"}, found, config)
    assert said.splitlines()[1:] == [
        "  fitted to config.model and the images: patch_embed.proj.weight [16, 1, 4, 4] -> [16, 3, 4, 4], "
        "pos_embed [1, 10, 16] -> [1, 5, 16]"
    ]
    same = save(tmp_path / "same", VIT)
    other = dino(same)
    other.data.mean = (0.1, 0.1, 0.1)
    config = configs.parse(other)
    assert "need images normalized by mean (0.4, 0.5, 0.6)" in show(
        {"name": "w", "digest": "0"}, load(config, Given()), config
    )


@pytest.mark.parametrize(
    "given, taken",
    [
        ({}, True),
        ({"mean": MEAN}, True),
        ({"mean": (0.1, 0.1, 0.1)}, False),
        ({"value_range": (0.0, 100.0)}, False),
    ],
)
def test_the_weights_normalization_is_taken_where_all_else_is_theirs(tmp_path, given, taken):
    config = simclr(save(tmp_path, RESNET))
    config.data.update(given)
    found = measured(config, data.arrays(IMAGES), None, Beginning(config, tmp_path / "run", Given(), None).backbone)
    assert (found.data.std == STD) == taken
    assert found.data.mean == (MEAN if taken else given.get("mean", found.data.mean))


@pytest.mark.slow
def test_frozen_blocks_are_those_of_the_weights_after_training(tmp_path):
    file = save(tmp_path / "weights", VIT)
    config = dino(file)
    with config.unlocked():
        config.optimizer.update(freeze_blocks=1, warmup_steps=0, lr=0.1)
    run = ssl_jax.pretrain(config, data.arrays(IMAGES), workdir=tmp_path / "run")
    before, after = load_backbone(file).variables["params"], run.backbone.variables["params"]
    for name in ("patch_embed", "cls_token", "pos_embed", "blocks_0"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    assert np.abs(after["blocks_1"]["attn"]["qkv"]["kernel"] - before["blocks_1"]["attn"]["qkv"]["kernel"]).max() > 1e-4


def test_a_run_that_goes_on_creates_no_state_beside_the_one_it_restores(tmp_path, monkeypatch):
    source = data.arrays(IMAGES, labels=LABELS)
    config = configs.parse(measured(simclr(""), source, None, lambda _: None))
    training = build.training(config, build.schedule(config, len(source), 2))
    first = Loop(config, training, source, tmp_path, Termination())
    state = first.restore()
    first.checkpoints.save(0, state)
    first.checkpoints.close()
    monkeypatch.setattr(dist, "create_state", lambda *_, **__: pytest.fail("a second state was created"))
    found = Loop(config, training, source, tmp_path, Termination()).restore()
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), found.params, state.params)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, state)
