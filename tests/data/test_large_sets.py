"""More images than 32 bits can count: the same batches and the same views as a plain computation gives."""

import math
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ssl_jax
from ssl_jax import ops
from ssl_jax.data import indices, pipeline
from ssl_jax.data.augment import OwnAugmentation, make_augment
from ssl_jax.data.crop import RandomCrop, random_crop
from ssl_jax.data.normalization import Normalization
from ssl_jax.data.order import KeyedPermutation
from ssl_jax.data.reader import crop_rng
from ssl_jax.data.sources import Source
from ssl_jax.methods.toolkit import memories, tiling

MANY = 2**31 + 10
CROPS = (RandomCrop((8, 8), (0.2, 1.0), (3 / 4, 4 / 3)), RandomCrop((4, 4), (0.2, 1.0), (3 / 4, 4 / 3)))


class Fake(Source):
    """So many images, none of which is stored."""

    name, labels = "fake", None

    def __init__(self, count, channels=3):
        self.count, self.channels = count, channels

    def __len__(self):
        return self.count

    def read(self, index):
        assert type(index) is int and 0 <= index < self.count
        return np.random.default_rng(index).integers(0, 256, (12, 10, self.channels), np.uint8), -1


@pytest.mark.parametrize("step", [0, 3, MANY // 6, 10**9])
def test_batches_are_those_of_a_plain_computation(step):
    options = dict(seed=4, batch_size=6, image_size=(8, 8), crops=CROPS)
    batch = next(pipeline.train_batches(Fake(MANY), start_step=step, **options))
    epoch, number = divmod(step, MANY // 6)
    images = KeyedPermutation.of(MANY, 4, epoch)(number * 6 + np.arange(6))
    assert batch["index"].dtype == np.int32 and batch["index"].shape == (6, 2)
    np.testing.assert_array_equal(indices.on_host(batch["index"]), images)
    for view, crop in enumerate(CROPS):
        for row, image in enumerate(images.tolist()):
            expected, _ = random_crop(Fake(MANY).read(image)[0], crop, crop_rng(4, step, image, view), (0.0,))
            np.testing.assert_array_equal(batch["crops"][view][row], expected)


def test_processes_share_the_batches_of_a_large_set():
    options = dict(seed=0, batch_size=4, image_size=(8, 8), crops=CROPS, start_step=10**8)
    whole = next(pipeline.train_batches(Fake(MANY), **options))
    parts = [next(pipeline.train_batches(Fake(MANY), process_index=k, process_count=2, **options)) for k in (0, 1)]
    np.testing.assert_array_equal(np.concatenate([part["index"] for part in parts]), whole["index"])
    np.testing.assert_array_equal(np.concatenate([part["crops"][0] for part in parts]), whole["crops"][0])


def test_the_first_batch_comes_at_once():
    begin = time.process_time()
    next(pipeline.train_batches(Fake(2**40), seed=0, batch_size=32, image_size=(8, 8), crops=CROPS))
    assert time.process_time() - begin < 1


@pytest.mark.parametrize("count", [50, 2**31, MANY, 2**40])
def test_an_index_comes_back_from_its_words(count):
    index = np.array([0, 1, 5, count // 2 + 1, count - 2, count - 1])
    words = indices.for_device(index, count)
    assert words.dtype == np.int32 and words.shape == indices.device_shape(6, count)
    assert words.ndim == (1 if count <= 2**31 else 2)
    np.testing.assert_array_equal(indices.on_host(words), index)


def test_an_image_has_the_same_key_in_a_set_of_any_size():
    rng, index = jax.random.key(3), np.array([0, 7, 2**31 - 1])
    plain = jax.vmap(jax.random.fold_in, (None, 0))(rng, index.astype(np.int32))
    for count in (2**31, MANY):
        assert (ops.example_keys(rng, indices.for_device(index, count)) == plain).all()


def test_the_high_word_is_folded_in_where_there_is_one():
    rng, index = jax.random.key(3), np.array([2**31 + 5, 2**32 + 5, 2**40 + 5])
    keys = jax.jit(ops.example_keys)(rng, indices.for_device(index, 2**41))
    low = jax.random.fold_in(rng, np.uint32(2**31 + 5))
    five = jax.random.fold_in(rng, 5)
    expected = [low, jax.random.fold_in(five, 1), jax.random.fold_in(five, 2**8)]
    assert all(key == wanted for key, wanted in zip(keys, expected, strict=True))


def noisy(rng, image):
    return image + jax.random.uniform(rng, image.shape)


def test_views_of_a_large_set_depend_on_both_words():
    images = np.broadcast_to(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8), (3, 8, 8, 3))
    augment = make_augment([OwnAugmentation(noisy, (8, 8))], Normalization((0.5,) * 3, (0.2,) * 3))
    index = np.array([5, 2**32 + 5, 2**33 + 5])
    batch = {"image": images, "index": indices.for_device(index, 2**40)}
    (views,) = augment(jax.random.key(0), batch)["views"]
    (alone,) = augment(jax.random.key(0), {"image": images[:1], "index": np.array([5], np.int32)})["views"]
    np.testing.assert_array_equal(views[0], alone[0])
    assert len({view.tobytes() for view in np.asarray(views)}) == 3


def test_tiles_take_an_index_of_two_words():
    drawn = tiling.uniform(jax.random.key(0), indices.for_device(np.array([5, 2**32 + 5]), 2**40), (3,))
    assert drawn.shape == (2, 3) and not np.allclose(drawn[0], drawn[1])


def test_a_memory_of_each_image_says_how_many_it_holds():
    assert memories.bank_rows(2**31 - 1024) == 2**31 - 1024
    with pytest.raises(ValueError, match="at most 2,147,482,624, and the set has 2,147,483,658"):
        memories.create_bank(jax.random.key(0), MANY, 128)


class Net(nn.Module):
    @nn.compact
    def __call__(self, images):
        return jnp.mean(nn.relu(nn.Conv(4, (3, 3))(images)), axis=(1, 2))


def test_a_run_trains_on_a_large_set(tmp_path):
    config = ssl_jax.get_config("simclr:tiny")
    config.update(batch_size=8, steps=2, log_every=1, evaluate_every=0, checkpoint_every=1)
    config.data.image_size = config.augment.view.size = (8, 8)
    config.method.projector = (4,)
    run = ssl_jax.pretrain(config, Fake(MANY, channels=1), workdir=tmp_path, backbone=Net())
    assert run.facts["num_images"] == MANY and math.isfinite(run.metrics[-1]["loss"])
