"""What is true of every method, with its own tiny config: see the tests' names."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from ssl_jax import build, config, parallel, step
from ssl_jax.checkpoint import Checkpoints
from ssl_jax.data import pipeline, sources
from ssl_jax.data.augment import make_augment
from ssl_jax.methods import METHODS, Run

ROOT = Path(__file__).parents[2]
STEPS = 20
# The others take half an hour together on two cores: they have a mark of their own.
OFTEN = ("simclr", "byol", "moco_v2")
LEARNING_RATE = {"nnclr": 1e-5, "nnbyol": 1e-5, "pcl": 1e-6, "counting": 1e-6, "vae": 1e-7}  # of the others 1e-4

SMALLER = {"width": 0.5, "depth": 2, "base_width": 8}  # networks


def each_method():
    marks = {name: pytest.mark.slow if name in OFTEN else pytest.mark.every_method for name in METHODS}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


def load(name, scale="tiny"):
    return config.load_file(f"{ROOT / 'configs' / name}.py:{scale}")


@functools.cache
def images(channels):
    """Fashion-MNIST; with three channels each image in a color of its own, for methods that look at colors."""
    source = sources.load("fashion_mnist", split="train", channels=channels)
    gray = sources.Subset(source, np.arange(8192))
    if channels == 1:
        return gray
    tints = np.random.default_rng(0).uniform(0.2, 1.0, (len(gray), 1, 1, 3))
    pixels = np.stack([gray[i] for i in range(len(gray))])
    return sources.ArraySource((pixels * tints).astype(np.uint8), gray.labels)


class Training:
    """A method's tiny config, its network made smaller, on some devices; steps of SGD, whose size shows.

    They are small enough for rounding not to grow: a nearest neighbor that changes with it changes the loss by more.
    """

    def __init__(self, name, devices):
        self.config = load(name)
        self.config.model.update({key: value for key, value in SMALLER.items() if key in self.config.model})
        self.config.optimizer = {
            "name": "sgd",
            "lr": LEARNING_RATE.get(name, 1e-4),
            "weight_decay": 1e-4,
            "warmup_steps": 0,
            "final_lr": 0.0,
        }
        self.run = Run(
            batch_size=self.config.batch_size, steps=STEPS, steps_per_epoch=6, num_images=8192, num_classes=10
        )
        self.method = build.method(self.config, self.run)
        self.views = build.augmentations(self.config, self.method.views)
        self.tx, _ = build.optimizer(self.config, STEPS, self.method)
        data = self.config.data
        augment = make_augment(self.views, mean=data.mean, std=data.std, masks=build.masks(self.config, self.method))
        self.mesh = Mesh(np.asarray(jax.devices()[:devices]), (parallel.AXIS,))
        self.one_step = step.TrainStep(
            method=self.method, tx=self.tx, augment=augment, axis_name=parallel.AXIS, log_every=1000
        )
        self.step = parallel.map_step(self.one_step, self.mesh)

    def first_state(self):
        example = jnp.zeros((1, *self.views[0].size, self.config.data.channels))
        state = parallel.replicate(step.create_state(self.method, self.tx, example, seed=0), self.mesh)
        if not hasattr(self.method, "prepare"):
            return state
        preparing = step.Preparing(self.method, self.run.steps_per_epoch)
        mapped = parallel.map_step(
            dataclasses.replace(self.one_step, method=preparing, tx=step.standing_still(self.tx)), self.mesh
        )
        batches = self.batches(0)
        for _ in range(self.run.steps_per_epoch):
            state, _ = mapped(state, parallel.split_batch(next(batches), self.mesh))
        return state.replace(step=state.step * 0)

    def batches(self, start):
        return pipeline.train_batches(
            images(self.config.data.channels),
            seed=0,
            batch_size=self.run.batch_size,
            image_size=self.config.data.image_size,
            crops=[view.crop for view in self.views],
            start_step=start,
        )

    def go_on(self, state, steps):
        """(the state after these steps, their losses)"""
        batches, history = self.batches(int(state.step)), []
        for _ in range(steps):
            state, metrics = self.step(state, parallel.split_batch(next(batches), self.mesh))
            history.append(float(metrics["loss"]))
        return state, np.array(history)


@pytest.mark.parametrize("name", each_method())
def test_one_device_and_eight_and_a_resumed_run_give_the_same(name, tmp_path):
    training = Training(name, 1)
    first = training.first_state()
    untouched = jax.device_get(first)
    halfway, history = training.go_on(first, 5)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(5, halfway)
    checkpoints.close()
    unbroken, more = training.go_on(halfway, 5)
    unbroken = jax.device_get(unbroken)
    restored = Checkpoints(tmp_path / "checkpoints").restore(training.first_state())
    resumed, more_again = training.go_on(restored, 5)
    np.testing.assert_array_equal(more_again, more)
    jax.tree.map(np.testing.assert_array_equal, _numbers(jax.device_get(resumed)), _numbers(unbroken))
    pair = (jax.tree.leaves(untouched.params), jax.tree.leaves(unbroken.params))
    moved = [not np.array_equal(a, b) for a, b in zip(*pair, strict=True)]
    assert np.mean(moved) > 0.8, "most parameters should move in ten steps"

    _, last = training.go_on(resumed, 10)
    on_one = np.concatenate([history, more, last])
    assert np.all(np.isfinite(on_one))
    eight = Training(name, 8)
    _, on_eight = eight.go_on(eight.first_state(), STEPS)
    # Losses near 0, as of negative cosines plus a constant, are compared to the size of their terms.
    np.testing.assert_allclose(on_eight, on_one, rtol=1e-4, atol=1e-4 * max(1.0, np.abs(on_one).max()) * 0.1)


def _numbers(state):
    """Random keys as the integers that they are."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state)


@pytest.mark.parametrize("name", METHODS)
def test_chance_level_is_a_number_or_none(name):
    method = Training(name, 1).method
    assert method.chance_level is None or np.isfinite(method.chance_level)


def scales(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SCALES


@pytest.mark.slow  # tests/test_config.py checks their numbers
@pytest.mark.parametrize("name, scale", [(name, scale) for name in METHODS for scale in scales(name)])
def test_every_scale_of_every_config_can_be_built(name, scale):
    settings = load(name, scale)
    config.check(settings)
    # Tracing all blocks of a large network takes seconds, and shows no more than one of each stage does.
    with settings.unlocked():
        if "resnet" in settings.model.name:
            settings.model.stages = (1, 1, 1, 1)
        elif settings.model.name.startswith("vit"):
            settings.model.depth = 6
    num_images = 10_000 if "[" in settings.data.split else 1_281_167  # of a part of the data set, or of ImageNet
    run = Run(
        batch_size=settings.batch_size, steps=100_000, steps_per_epoch=100, num_images=num_images, num_classes=1000
    )
    method = build.method(settings, run)
    views = build.augmentations(settings, method.views)
    build.masks(settings, method)
    tx, _ = build.optimizer(settings, run.steps, method)
    example = jnp.zeros((1, *views[0].size, settings.data.channels))
    state = jax.eval_shape(lambda: step.create_state(method, tx, example, 0))
    assert sum(x.size for x in jax.tree.leaves(state.params)) > 1000
