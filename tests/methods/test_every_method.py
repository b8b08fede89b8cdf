"""What is true of every method, with its own tiny config: see the tests' names."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import config, dist
from ssl_jax.configs import scales
from ssl_jax.data import opening, pipeline, sources
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.training import augmenting, build
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.state import create_state
from tests.methods import smaller
from tests.methods.teachers import with_teacher

BATCH, STEPS, STEPS_PER_EPOCH, SAVED = 64, 5, 3, 2
# The others take a quarter of an hour together on two cores: they have a mark of their own.
OFTEN = ("simclr", "byol", "moco_v2")
GRAM = {"gram_start": 1, "gram_warmup": 0, "gram_copies": (3,)}  # all of it happens within a few steps
SMALLER = {"model": smaller.MODEL, "method": {**smaller.METHOD, "cluster_every": 1.0, **GRAM}}
# Their map would be larger than what is decoded from it; what would be whitened has no full rank.
ALL_STAGES = ("colorization", "split_brain", "w_mse")
# Of the others 1e-4. So small that no nearest neighbor changes with rounding, which changes a loss by more.
LEARNING_RATE = {
    "all4one": 1e-5,
    "nnclr": 1e-5,
    "nnbyol": 1e-5,
    "nnsiam": 1e-5,
    "msf": 1e-5,
    "pcl": 1e-6,
    "sela_v2": 1e-5,
    "counting": 1e-6,
    "vae": 1e-7,
}
OF_FOLDERS = ("folder", "continue")  # scales for images of one's own


def each_method():
    marks = {name: pytest.mark.slow if name in OFTEN else pytest.mark.every_method for name in METHODS}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


def load(name, scale="tiny"):
    found = config.get_config(f"{name}:{scale}")
    if scale in OF_FOLDERS:  # its images are measured when a run begins
        found.data.update(channels=3, dtype="uint8", mean=(0.5,) * 3, std=(0.25,) * 3)
    return with_teacher(found)


@functools.cache
def images(channels):
    """Fashion-MNIST; with three channels each image in a color of its own, for methods that look at colors."""
    source = opening.load("fashion_mnist", split="train", channels=channels)
    gray = sources.Subset(source, np.arange(1024))
    if channels == 1:
        return gray
    tints = np.random.default_rng(0).uniform(0.2, 1.0, (len(gray), 1, 1, 3))
    pixels = np.stack([gray[i] for i in range(len(gray))])
    return sources.ArraySource((pixels * tints).astype(np.uint8), gray.labels)


def sgd(lr, weight_decay=0.0, **changes):
    """An optimizer of steps whose size shows: Adam's first ones are as long for any gradient."""
    return dict(name="sgd", lr=lr, weight_decay=weight_decay, warmup_steps=0, final_lr=0.0) | changes


class Training:
    """A method's tiny config with a smaller network, on some devices."""

    def __init__(self, name, devices, optimizer, *, shard_state=False, **model):
        settings = load(name).unlock()
        for section, values in SMALLER.items():
            settings[section].update({key: value for key, value in values.items() if key in settings[section]})
        if "resnet" in settings.model.name and name not in ALL_STAGES:
            settings.model.stages = (1,)
        settings.model.update(model)
        settings.batch_size = 128 if name == "w_mse" else BATCH  # which whitens 128 rows together
        settings.optimizer = optimizer
        settings, source = config.parse(settings), images(settings.data.channels)
        facts = build.schedule(settings, len(source), 10)
        self.made = build.training(settings, dataclasses.replace(facts, steps=STEPS, steps_per_epoch=STEPS_PER_EPOCH))
        self.mesh, self.shard_state = dist.make_mesh(jax.devices()[:devices]), shard_state
        self.step = self.mapped(self.made.step)
        self.batches = lambda start: pipeline.train_batches(
            source,
            seed=0,
            batch_size=settings.batch_size,
            image_size=settings.data.image_size,
            crops=[augmentation.crop for augmentation in self.made.augmentations],
            start_step=start,
        )

    def mapped(self, one_step):
        return dist.map_step(one_step, self.mesh, shard_state=self.shard_state)

    def first(self):
        """After the pass over the images that some methods want."""
        state = dist.create_state(self.made.create_state, self.mesh, shard_state=self.shard_state)
        if self.made.prepare is None:
            return state
        prepare, batches = self.mapped(self.made.prepare), self.batches(0)
        for _ in range(self.made.method.preparing_steps):
            state, _ = prepare(state, dist.shard_batch(next(batches), self.mesh))
        return state.replace(step=state.step * 0)

    def restore(self, directory):
        """What a run on other devices saved."""

        def blank(leaf):
            is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
            return jax.random.key(0) if is_key else jnp.zeros(leaf.shape, leaf.dtype)

        shapes = jax.eval_shape(self.made.create_state)
        like = dist.create_state(lambda: jax.tree.map(blank, shapes), self.mesh, shard_state=self.shard_state)
        return Checkpoints(directory).restore(like)

    def go_on(self, state, steps):
        """(the state after these steps; loss and gradient's norm of each)"""
        batches, said = self.batches(int(state.step)), []
        for _ in range(steps):
            state, metrics = self.step(state, dist.shard_batch(next(batches), self.mesh))
            said.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        return state, np.array(said)


def save(directory, state):
    checkpoints = Checkpoints(directory)
    checkpoints.save(int(state.step), state)
    checkpoints.close()


def numbers(state):
    """The leaves; random keys as the integers that they are."""
    leaves = jax.tree.leaves(state)
    return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]


def held(state):
    """Bytes on the first device."""
    return sum(x.addressable_shards[0].data.nbytes for x in numbers(state))


def assert_same(found, expected, mesh):
    pair = (jax.device_get(dist.gather_state(numbers(state), mesh)) for state in (found, expected))
    for a, b in zip(*pair, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1e-2))


@pytest.mark.parametrize("name", each_method())
def test_one_device_eight_a_state_split_over_eight_and_a_resumed_run_give_the_same(name, tmp_path):
    optimizer = sgd(LEARNING_RATE.get(name, 1e-4), weight_decay=1e-4)
    one = Training(name, 1, optimizer)
    first = one.first()
    untouched = jax.device_get(numbers(first.params))
    save(tmp_path / "first", first)
    halfway, begun = one.go_on(first, SAVED)
    save(tmp_path / "halfway", halfway)
    unbroken, ended = one.go_on(halfway, STEPS - SAVED)
    resumed, ended_again = one.go_on(one.restore(tmp_path / "halfway"), STEPS - SAVED)
    np.testing.assert_array_equal(ended_again, ended)
    for a, b in zip(numbers(resumed), numbers(unbroken), strict=True):
        np.testing.assert_array_equal(a, b)
    moved = [not np.array_equal(a, b) for a, b in zip(untouched, numbers(unbroken.params), strict=True)]
    assert np.mean(moved) > 0.8, "most parameters should move"

    expected = np.concatenate([begun, ended])
    assert np.all(np.isfinite(expected))
    eight, split = (Training(name, 8, optimizer, shard_state=shard_state) for shard_state in (False, True))
    whole, on_eight = eight.go_on(eight.restore(tmp_path / "first"), STEPS)
    # Losses near 0, as of negative cosines plus a constant, are compared to the size of their terms.
    np.testing.assert_allclose(
        on_eight[:, 0], expected[:, 0], rtol=1e-4, atol=1e-5 * max(1.0, np.abs(expected[:, 0]).max())
    )
    parts = split.restore(tmp_path / "first")
    size = held(parts)
    parts, in_parts = split.go_on(parts, STEPS)
    assert held(parts) == size < held(whole) / 4  # small leaves are whole
    np.testing.assert_allclose(in_parts, on_eight, rtol=1e-5)
    assert_same(parts, whole, eight.mesh)


@pytest.mark.parametrize("name", METHODS)
def test_chance_level_is_a_number_or_none(name):
    settings = config.parse(load(name))
    method = build.method(settings, build.schedule(settings, 8192, 10))
    assert method.chance_level is None or np.isfinite(method.chance_level)


@pytest.mark.slow  # tests/config/test_config.py checks their numbers
@pytest.mark.parametrize("name, scale", [(name, scale) for name in METHODS for scale in scales(name)])
def test_every_scale_of_every_config_can_be_built(name, scale):
    settings = load(name, scale)
    config.parse(settings)
    # Tracing all blocks of a large network takes seconds, and shows no more than one of each stage does.
    with settings.unlocked():
        if "resnet" in settings.model.name:
            settings.model.stages = (1, 1, 1, 1)
        elif settings.model.name.startswith("vit"):
            settings.model.depth = 6
            for key in ("target_blocks", "early_blocks"):
                if key in settings.method:
                    settings.method[key] = min(settings.method[key], 6)
    # Of a part of the data set, of a folder, or of ImageNet.
    num_images = 10_000 if "[" in settings.data.split or scale in OF_FOLDERS else 1_281_167
    run = Schedule(
        batch_size=settings.batch_size, steps=100_000, steps_per_epoch=100, num_images=num_images, num_classes=1000
    )
    settings = config.parse(settings)
    method = build.method(settings, run)
    views = augmenting.augmentations(settings, method.views)
    augmenting.masks(settings, method, views)
    tx, _ = build.optimizer(settings, run.steps, method)
    example = jnp.zeros((1, *views[0].size, settings.data.channels))
    state = jax.eval_shape(lambda: create_state(method, tx, example, 0))
    assert sum(x.size for x in jax.tree.leaves(state.params)) > 1000
