"""config.mix: each step draws the sizes of its views."""

import functools
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.data import as_source
from ssl_jax.training import build
from ssl_jax.training.build import Given
from ssl_jax.training.loop import read_batches
from ssl_jax.training.termination import Stopped

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 12, 12, 1), np.uint8)
SIDES, STEPS = (8, 12), 6
IN_MEMORY = pytest.mark.parametrize("memory_bytes", [2**31, 0], ids=["in memory", "cropped on the host"])


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        return jnp.mean(nn.relu(nn.Conv(4, (3, 3))(images)), axis=(1, 2))


def small(memory_bytes=0, **mix):
    config = ssl_jax.get_config("simclr:tiny")
    config.update(batch_size=16, steps=STEPS, log_every=1, evaluate_every=0, checkpoint_every=100)
    config.data.update(image_size=(12, 12), memory_bytes=memory_bytes)
    config.augment.view.size = (10, 10)
    config.method.projector = (4,)
    config.mix = mix or dict(shares=(0.5, 0.5), view=SIDES)
    return config


def parsed(config):
    config = configs.parse(config)
    return config, build.training(config, build.schedule(config, len(IMAGES), 0), Given(backbone=Net()))


def sizes(batch):
    return {view.shape[1:3] for view in batch["views"]}


@IN_MEMORY
def test_the_views_of_a_step_have_the_sizes_that_it_draws(memory_bytes):
    config, training = parsed(small(memory_bytes))
    batches = read_batches(config, as_source(IMAGES), training, seed=0)
    found = []
    for step in range(STEPS):
        views = jax.eval_shape(training.at(step).views, jax.random.key(0), next(batches))
        found.append(sizes(views))
        assert found[-1] == {(SIDES[training.entry(step)],) * 2}
    assert len({*map(tuple, found)}) == 2, "both are drawn within these steps"
    (view, *_) = training.augmentations
    assert view.size == (10, 10)  # outside of steps
    assert {crop.size for crop in training.unmixed.at(3).augmentations} == {(10, 10)}


def test_one_device_and_eight_take_the_same_steps():
    config, training = parsed(small())
    source = as_source(IMAGES)

    def losses(devices):
        mesh = dist.make_mesh(jax.devices()[:devices])
        steps = [dist.map_step(one.step, mesh) for one in training.each]
        state, batches = dist.create_state(training.create_state, mesh), read_batches(config, source, training, seed=0)
        found = []
        for number in range(STEPS):
            state, metrics = steps[training.entry(number)](state, dist.shard_batch(next(batches), mesh))
            found.append(float(metrics["loss"]))
        return found

    assert {training.entry(number) for number in range(STEPS)} == {0, 1}
    np.testing.assert_allclose(losses(8), losses(1), rtol=1e-4)


@IN_MEMORY
def test_a_resumed_run_gives_the_same_bytes_as_an_unbroken_one(tmp_path, memory_bytes):
    config, run = small(memory_bytes), functools.partial(ssl_jax.pretrain, images=IMAGES, backbone=Net())
    whole = run(config, workdir=tmp_path / "whole")

    def stop(step, metrics):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped):
        run(config, workdir=tmp_path / "parts", on_metrics=stop)
    parts = run(config, workdir=tmp_path / "parts")
    weights = [(one.workdir / "backbone.safetensors").read_bytes() for one in (whole, parts)]
    assert weights[0] == weights[1]
    of_losses = [[row["loss"] for row in one.metrics] for one in (whole, parts)]
    assert of_losses[0] == of_losses[1] and len(of_losses[0]) == STEPS


@pytest.mark.parametrize(
    "mix, message",
    [
        (dict(shares=(0.5, 0.5), views=(8, 12)), r"config.mix has no key 'views'.*view"),
        (dict(view=(8, 12)), "config.mix has no shares"),
        (dict(shares=(0.5, 0.5), view=(8,)), "config.mix: view must have a side for each of the 2 shares"),
        (dict(shares=(0.5, 0.4), view=(8, 12)), "config.mix: shares must sum to 1"),
    ],
)
def test_refusals(mix, message):
    with pytest.raises(configs.ConfigError, match=message):
        parsed(small(**mix))


def test_a_size_that_the_network_cannot_take_is_refused_before_the_first_step():
    config = ssl_jax.get_config("mae:tiny")  # patches of 7 pixels
    config.mix = dict(shares=(0.9, 0.1), view=(28, 30))
    config = configs.parse(config)
    with pytest.raises(configs.ConfigError, match=r"config.m.*30"):
        build.training(config, build.schedule(config, 1024, 10))


def test_the_sizes_of_a_users_own_function_are_its_own():
    config = configs.parse(small())
    given = Given(backbone=Net(), augment=lambda rng, image: image)
    with pytest.raises(configs.ConfigError, match=r"config.mix.view: the view's own function decides its size"):
        build.training(config, build.schedule(config, len(IMAGES), 0), given)


def test_an_empty_mix_changes_no_digest_and_no_training():
    config = ssl_jax.get_config("simclr:tiny")
    before = {key: value for key, value in configs.plain(config).items() if key != "mix"}
    assert configs.digest(config) == configs.digest(before)
    mixed = configs.plain(small())
    assert configs.digest(mixed) != configs.digest({key: value for key, value in mixed.items() if key != "mix"})
    config = small()
    config.mix = {}
    training = parsed(config)[1]
    assert training.each == (training,) and training.at(5) is training
