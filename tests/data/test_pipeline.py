import ast
import itertools
import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from ssl_jax.data import opening, pipeline, sources
from ssl_jax.data.crop import center_crop
from ssl_jax.data.formats import UndecodableImage
from ssl_jax.data.normalization import Normalization
from ssl_jax.data.pipeline import RandomCrop, eval_batches, train_batches
from ssl_jax.data.uniform import Uniform

SIZE = (8, 8)
CROPS = (RandomCrop((8, 8), (0.2, 1.0), (3 / 4, 4 / 3)), RandomCrop((4, 6), (0.05, 0.3), (3 / 4, 4 / 3)))
IN_MEMORY, STREAMED = {"memory_bytes": 2**31}, {"memory_bytes": 0}
MODES = pytest.mark.parametrize("mode", [IN_MEMORY, STREAMED], ids=["in memory", "streamed"])
NUM_IMAGES, BATCH = 50, 12


class Textures(sources.Source):
    """Image k is of its own texture, labelled k % 5; those of `broken` cannot be decoded. It remembers what is read."""

    name, class_names = "textures", tuple("abcde")

    def __init__(self, num_images=NUM_IMAGES, broken=()):
        self.num_images, self.broken, self.read_indices = num_images, set(broken), []

    @property
    def labels(self):
        raise AssertionError("for a large TFDS set these cost a pass over all of its files")

    def __len__(self):
        return self.num_images

    def read(self, index):
        self.read_indices.append(index)
        if index in self.broken:
            raise UndecodableImage(f"{index}.png", "broken on purpose")
        height, width = 20 + index % 3, 30 - index % 4
        return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8), index % 5


class AfterTheFirst:
    """Every image, from the second read on."""

    def __init__(self, source):
        self.source = source

    def __contains__(self, index):
        return len(self.source.read_indices) > 1


def batches(count, source=None, **options):
    options = {"seed": 0, "batch_size": BATCH, "image_size": SIZE, "crops": CROPS} | options
    return list(itertools.islice(train_batches(Textures() if source is None else source, **options), count))


def arrays(batch):
    return [*batch.get("crops", ()), *(batch[name] for name in ("image", "index", "label") if name in batch)]


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for one, two in zip(arrays(batch), arrays(other), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


def same(batch, other):
    return all(np.array_equal(one, two) for one, two in zip(arrays(batch), arrays(other), strict=True))


@MODES
def test_shapes_and_types(mode):
    (batch,) = batches(1, **mode)
    images = {"image": ((BATCH, 8, 8, 3),)} if mode is IN_MEMORY else {"crops": ((BATCH, 8, 8, 3), (BATCH, 4, 6, 3))}
    found = {name: tuple(a.shape for a in batch[name]) for name in ("crops",) if name in batch}
    found |= {name: (batch[name].shape,) for name in ("image",) if name in batch}
    assert found == images
    assert [a.dtype for a in arrays(batch)] == [np.uint8] * (len(arrays(batch)) - 2) + [np.int32] * 2
    np.testing.assert_array_equal(batch["label"], batch["index"] % 5)


@MODES
def test_a_batch_is_a_function_of_seed_and_step(mode):
    """Whatever came before it, and however many threads made it."""
    unbroken = batches(11, **mode)  # two epochs of 4, and some
    for start in (1, 4, 9):
        resumed = batches(11 - start, start_step=start, threads=3, **mode)
        for batch, again in zip(unbroken[start:], resumed, strict=True):
            assert_equal(batch, again)
    for other in (batches(1, seed=1, **mode)[0], unbroken[4]):  # another seed, another epoch
        assert not same(unbroken[0], other)


@MODES
def test_processes_make_their_rows_of_the_batch(mode):
    whole = batches(6, **mode)
    shares = [batches(6, process_index=p, process_count=2, **mode) for p in range(2)]
    for batch, one, two in zip(whole, *shares, strict=True):
        for rows, first, second in zip(arrays(batch), arrays(one), arrays(two), strict=True):
            assert len(first) == BATCH // 2
            np.testing.assert_array_equal(rows, np.concatenate([first, second]))


def test_a_process_reads_only_its_share():
    first, second = Textures(), Textures()
    for p, source in enumerate((first, second)):
        batches(4, source, process_index=p, process_count=2, prefetch=0, **STREAMED)
    epoch = [index for source in (first, second) for index in source.read_indices[1:]]  # [0] told the channels
    assert len(epoch) == len(set(epoch)) == 48


@MODES
def test_an_epoch_has_each_image_once(mode):
    made = batches(8, **mode)
    epochs = [np.concatenate([batch["index"] for batch in made[k : k + 4]]) for k in (0, 4)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 48  # of 50: the remainder of 2 waits for another epoch
    assert (epochs[0] != epochs[1]).sum() > 40


def test_the_order_is_uniform():
    """Each image is as often at each place."""
    counts = np.zeros((5, 5))
    for step in range(4000):
        for place, image in enumerate(pipeline.batch_rows(step, seed=3, num_images=5, batch_size=5)):
            counts[place, image] += 1
    np.testing.assert_allclose(counts / 4000, 0.2, atol=0.025)  # 4 standard deviations


def test_in_memory_are_the_centers_of_the_images():
    (batch,) = batches(1, **IN_MEMORY)
    source = Textures()
    for image, index in zip(batch["image"], batch["index"], strict=True):
        np.testing.assert_array_equal(image, center_crop(source[int(index)], SIZE))


class OneByOne(sources.SameImages):
    def read(self, index):
        return self._source.read(index)


RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, (NUM_IMAGES, *SIZE, 3), np.uint8)
FLOATS = np.where(RNG.random((NUM_IMAGES, *SIZE, 3)) < 0.1, np.nan, RNG.random((NUM_IMAGES, *SIZE, 3)))


@pytest.mark.parametrize(
    "images, options",
    [
        (BYTES, {}),
        (np.broadcast_to(BYTES[..., :1], BYTES.shape), {}),
        (BYTES, {"nodata": (0.0, 7.0)}),
        (BYTES, {"dtype": "float32", "value_range": (0.0, 255.0)}),
        (FLOATS.astype(np.float32), {"dtype": "float32"}),
    ],
    ids=["bytes", "gray in three channels", "missing values", "another type", "missing floats"],
)
@pytest.mark.parametrize("labels", [None, np.arange(NUM_IMAGES) % 4 - 1], ids=["unlabelled", "labelled"])
def test_an_array_is_read_at_once_as_it_is_image_by_image(images, options, labels):
    source = sources.ArraySource(images, labels)
    normalization = Normalization(mean=(0.2, 0.5, 0.6), std=(0.3, 0.2, 0.1), **options)
    at_once, one_by_one = (Uniform(kind, normalization) for kind in (source, OneByOne(source)))
    assert at_once.in_memory(SIZE) is not None and one_by_one.in_memory(SIZE) is None
    for batch, other in zip(batches(5, at_once), batches(5, one_by_one), strict=True):
        assert_equal(batch, other)


def test_arrays_of_another_size_in_a_file_or_read_in_another_way_are_read_image_by_image(tmp_path):
    class Brighter(sources.ArraySource):
        def read(self, index):
            image, label = super().read(index)
            return image // 2 + 128, label

    np.save(tmp_path / "images.npy", BYTES)
    source = sources.ArraySource(BYTES)
    assert source.in_memory(SIZE) is not None and source.in_memory((SIZE[0], SIZE[1] + 1)) is None
    assert Brighter(BYTES).in_memory(SIZE) is None
    assert sources.ArraySource(np.load(tmp_path / "images.npy", mmap_mode="r")).in_memory(SIZE) is None
    gray = Uniform(source, Normalization(mean=(0.5,), std=(0.2,)))
    with pytest.raises(pipeline.ImagesError, match="3 channels, and the others have 1"):
        batches(1, gray)


def test_streamed_crops_are_independent_of_each_other():
    """One image fills the set: its crops differ by view, by row (as index), and by step."""
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8)
    source = sources.ArraySource(np.stack([image] * 4))
    crop = RandomCrop((8, 8), (0.2, 0.5), (3 / 4, 4 / 3))
    made = batches(5, source, batch_size=4, crops=[crop, crop], **STREAMED)
    crops = [row.tobytes() for batch in made for view in batch["crops"] for row in view]
    assert len(set(crops)) == 5 * 2 * 4


BROKEN = (0, 7, 8, 31)


@MODES
def test_broken_images_are_replaced_and_named(mode, caplog):
    with caplog.at_level(logging.WARNING):
        found = train_batches(
            Textures(broken=BROKEN), seed=0, batch_size=BATCH, image_size=SIZE, crops=CROPS, prefetch=0, **mode
        )
        made = list(itertools.islice(found, 12))
    assert found.skipped == {f"{index}.png": "broken on purpose" for index in BROKEN}
    assert [caplog.text.count(f"skipped {index}.png: broken on purpose") for index in BROKEN] == [1] * 4
    for batch in made:
        assert batch["index"].shape == (BATCH,)
        assert not set(batch["index"].tolist()) & set(BROKEN)
    for batch, again in zip(made[5:], batches(7, Textures(broken=BROKEN), start_step=5, **mode), strict=True):
        assert_equal(batch, again)


@MODES
def test_an_image_that_one_process_or_one_start_cannot_read_moves_no_other(mode):
    """A stale file handle for a moment: the rows of the others, and its own later, are as if nothing had been."""
    whole, missed = batches(8, **mode), batches(8, Textures(broken=[5]), **mode)  # two epochs
    replaced = 0
    for batch, other in zip(whole, missed, strict=True):
        rows = batch["index"] != 5
        replaced += np.sum(~rows)
        for one, two in zip(arrays(batch), arrays(other), strict=True):
            np.testing.assert_array_equal(one[rows], two[rows])
        assert 5 not in other["index"]
    assert replaced > 0


def test_replacements_are_the_same_in_memory_and_streamed():
    memory, streamed = (batches(8, Textures(broken=BROKEN), **mode) for mode in (IN_MEMORY, STREAMED))
    for batch, other in zip(memory, streamed, strict=True):
        np.testing.assert_array_equal(batch["index"], other["index"])


@MODES
def test_replacements_are_spread(mode):
    """A run of broken files, as an interrupted copy leaves it, must not put the next good one into every batch."""
    made = batches(40, Textures(broken=range(25)), **mode)
    counts = np.bincount(np.concatenate([batch["index"] for batch in made]), minlength=NUM_IMAGES)
    assert counts[:25].max() == 0
    assert counts[25:].max() < 3 * counts[25:].mean()


@MODES
@pytest.mark.parametrize(
    "source, options, message",
    [
        (Textures(num_images=11), {}, "textures has 11 images, fewer than one batch; use a batch size of 11 or less"),
        (Textures(broken=range(3)), {"batch_size": 51}, "textures has .* images"),
        (
            Textures(broken=range(50)),
            {},
            "none of the 50 images .*can be decoded, for example 0.png: broken on purpose",
        ),
        (Textures(num_images=0), {}, "the data set has no images"),
        (Textures(), {"process_count": 5}, "batch_size 12 does not divide over 5 processes; use 15"),
    ],
)
def test_what_cannot_be_trained_on_is_said(mode, source, options, message):
    with pytest.raises(ValueError, match=message):
        batches(1, source, **options, **mode)


@MODES
def test_it_gives_up_where_nothing_can_be_decoded(mode):
    source = Textures()
    source.broken = AfterTheFirst(source)  # the disk goes
    with pytest.raises(
        ValueError,
        match=r"100 images in a row cannot be decoded, for example .* broken on purpose.* files that the warnings name",
    ):
        batches(1, source, **mode)


@MODES
def test_a_batch_may_be_larger_than_the_images_that_can_be_decoded(mode):
    (batch,) = batches(1, Textures(broken=BROKEN), batch_size=50, **mode)
    assert len(batch["index"]) == 50 and not set(batch["index"].tolist()) & set(BROKEN)


def test_evaluation_sees_every_image_once_in_order():
    source = Textures(broken=BROKEN)
    found = eval_batches(source, image_size=SIZE, batch_size=8)
    made = list(found)
    assert [len(batch["index"]) for batch in made] == [6, 7, 8, 7, 8, 8, 2]
    indices = np.concatenate([batch["index"] for batch in made])
    np.testing.assert_array_equal(indices, [k for k in range(NUM_IMAGES) if k not in BROKEN])
    np.testing.assert_array_equal(np.concatenate([batch["label"] for batch in made]), indices % 5)
    images = np.concatenate([batch["image"] for batch in made])
    for image, index in zip(images, indices, strict=True):
        np.testing.assert_array_equal(image, center_crop(source[int(index)], SIZE))
    assert found.skipped.keys() == {f"{index}.png" for index in BROKEN}


def test_evaluation_passes_over_a_batch_without_images():
    made = list(eval_batches(Textures(broken=range(8, 16)), image_size=SIZE, batch_size=8))
    assert [int(batch["index"][0]) for batch in made] == [0, 16, 24, 32, 40, 48]
    with pytest.raises(ValueError, match="none of the 50 images"):
        list(eval_batches(Textures(broken=range(50)), image_size=SIZE, batch_size=8))


@pytest.mark.parametrize("size, kept", [((28, 28), 128), ((112, 112), 112)])
def test_evaluation_of_large_images_keeps_224_of_256(size, kept):
    """The image is white but for a frame just outside of what is kept."""
    border = (128 - kept) // 2
    image = np.zeros((1, 128, 160, 1), np.uint8)
    image[:, border : 128 - border, border + 16 : 144 - border] = 255
    (batch,) = eval_batches(sources.ArraySource(image), image_size=size, batch_size=1)
    assert batch["image"].min() == 255


def test_a_folder_of_mixed_files(tmp_path):
    """64 files of which 2 are broken and none is labelled."""
    rng = np.random.default_rng(0)
    for k in range(62):
        shape = (int(rng.integers(9, 60)), int(rng.integers(9, 60)), *((3,) if k % 2 else ()))
        cv2.imwrite(str(tmp_path / f"{k:02}{('.png', '.jpg', '.webp')[k % 3]}"), rng.integers(0, 256, shape, np.uint8))
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "01.jpg").read_bytes()[:200])
    (tmp_path / "text.png").write_text("no image")
    source = opening.load("folder", path=str(tmp_path))
    for mode in (IN_MEMORY, STREAMED):
        found = train_batches(source, seed=0, batch_size=16, image_size=SIZE, crops=CROPS, **mode)
        for batch in itertools.islice(found, 20):
            np.testing.assert_array_equal(batch["label"], [-1] * 16)
        assert sorted(found.skipped) == ["broken.jpg", "text.png"]


def test_the_data_side_up_to_here_knows_no_array_library_but_numpy():
    for name in (
        "sources",
        "formats/__init__",
        "formats/stored",
        "folders",
        "fashion_mnist",
        "host_resample",
        "crop",
        "reader",
        "pipeline",
    ):
        nodes = list(ast.walk(ast.parse((Path(pipeline.__file__).parent / f"{name}.py").read_text())))
        imported = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
        assert not {"jax", "flax", "tensorflow", "torch"} & {module.split(".")[0] for module in imported}


class AskedToReduce(sources.ArraySource):
    """Notes by what it may divide the sides of an image, and does it, by averages."""

    def __init__(self, images):
        super().__init__(images)
        self.by = []

    def read_reduced(self, index, reduce):
        image, label = self.read(index)
        by = reduce(*image.shape[:2])
        self.by.append(by)
        small = cv2.resize(image, (image.shape[1] // by, image.shape[0] // by), interpolation=cv2.INTER_AREA)
        return small.reshape(*small.shape[:2], -1), label


@pytest.mark.parametrize(
    "size, area, least",
    [((32, 32), (1.0, 1.0), 8), ((64, 64), (0.25, 0.25), 2), ((64, 64), (1.0, 1.0), 4), ((200, 200), (0.5, 1.0), 1)],
)
def test_crops_ask_for_no_more_pixels_than_they_need(size, area, least):
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
    images = np.stack([cv2.resize(one, (300, 300), interpolation=cv2.INTER_CUBIC) for one in coarse])
    source = AskedToReduce(images)
    options = dict(seed=0, batch_size=4, image_size=(300, 300), memory_bytes=0, crops=[RandomCrop(size, area, (1, 1))])
    small = next(pipeline.train_batches(source, **options))
    assert {*source.by[1:]} == {least}  # the first is read for its channels
    whole = next(pipeline.train_batches(sources.ArraySource(images), **options))
    np.testing.assert_array_equal(small["index"], whole["index"])
    np.testing.assert_allclose(small["boxes"][0], whole["boxes"][0], atol=least / 300)
    # Of smooth images, the pixels are the same but for half a pixel of the reduced image.
    assert np.abs(small["crops"][0].astype(int) - whole["crops"][0]).mean() < 2 * least


def test_images_for_evaluation_ask_for_no_more_pixels_than_they_need():
    source = AskedToReduce(np.zeros((3, 320, 640, 3), np.uint8))
    next(pipeline.eval_batches(source, image_size=(64, 64), batch_size=3))
    assert source.by == [4] * 3
    source.by.clear()
    next(pipeline.eval_batches(source, image_size=(128, 128), batch_size=3))
    assert source.by == [2] * 3  # 7/8 of the shorter side, 280 pixels, become 128
