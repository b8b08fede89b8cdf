"""Windows of large images: which pixels, how much is decoded, and how they are trained on."""

import re
import threading

import cv2
import numpy as np
import pytest
import tifffile

from ssl_jax import data
from ssl_jax.data import opening, pipeline
from ssl_jax.data.crop import RandomCrop
from ssl_jax.data.formats import OpenImage
from ssl_jax.data.formats.stored import Stored
from ssl_jax.data.window_source import places

SCENE = np.random.default_rng(0).integers(0, 2**16, (500, 340, 5), np.uint16)


@pytest.fixture
def scenes(tmp_path):
    """A tiled TIFF, a JPEG that stands on its side, and an image that is smaller than a window."""
    tifffile.imwrite(tmp_path / "a.tif", SCENE, tile=(64, 64), planarconfig="contig", photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", SCENE[:50, :300], tile=(64, 64), planarconfig="contig")
    return data.folder(tmp_path, channels=None)


def place_of(source, index):
    top, left = re.fullmatch(r".*@(\d+),(\d+)", source.image_name(index)).groups()
    return int(top), int(left)


@pytest.mark.parametrize(
    "length, side, stride, starts",
    [(10, 10, 10, [0]), (3, 10, 10, [0]), (20, 10, 10, [0, 10]), (21, 10, 10, [0, 6, 11]), (12, 4, 2, [0, 2, 4, 6, 8])],
)
def test_places(length, side, stride, starts):
    # 21 pixels and windows of 10: 11 places further, in two steps of 5.5, which are rounded.
    assert places(length, side, stride).tolist() == starts


@pytest.mark.parametrize("side, stride", [(64, 0), (100, 60), (128, 128), (7, 5)])
def test_a_grid_covers_every_pixel_and_steps_no_further_than_its_stride(side, stride):
    for length in (side, side + 1, 3 * side, 517):
        starts = places(length, side, stride or side)
        covered = np.zeros(length, bool)
        for start in starts:
            assert 0 <= start <= length - side
            covered[start : start + side] = True
        assert covered.all() and np.all(np.diff(starts) <= (stride or side))


def test_windows_are_the_image_s_own_pixels(scenes):
    cut = data.windows(scenes, 128, stride=100)
    assert cut.image_of.tolist() == [0] * 20 + [1] * 3 and (cut.groups == cut.image_of).all()
    for index in range(len(cut)):
        whole, _ = scenes.read(int(cut.image_of[index]))
        top, left = place_of(cut, index)
        pixels, label = cut.read(index)
        np.testing.assert_array_equal(pixels, whole[top : top + 128, left : left + 128])
        assert pixels.dtype == np.uint16 and label == -1
        assert cut.whole_name(index) == ("a.tif", "b.tif")[cut.image_of[index]]
    assert cut.read(22)[0].shape == (50, 128, 5)  # an image smaller than a window is whole in that direction


def test_random_windows_lie_anywhere_in_the_image_and_equally_often(scenes):
    marked = np.stack(np.meshgrid(np.arange(500), np.arange(340), indexing="ij"), -1).astype(np.uint16)
    cut = data.windows(data.arrays(marked[None]), 128)
    rng, found = np.random.default_rng(0), []
    for _ in range(500):
        for index in range(len(cut)):
            pixels, _ = cut.read_random(index, rng)
            assert pixels.shape == (128, 128, 2)
            found.append(pixels[0, 0])
    tops, lefts = np.array(found).T
    for starts, count in ((tops, 500 - 128 + 1), (lefts, 340 - 128 + 1)):
        assert starts.min() == 0 and starts.max() == count - 1
        # Of a uniform variable on 0..count-1: mean, and the share in each tenth; 6000 draws, 5 deviations.
        assert abs(starts.mean() - (count - 1) / 2) < 5 * count / np.sqrt(12 * len(starts))
        shares = np.histogram(starts, 10, (0, count))[0] / len(starts)
        assert np.abs(shares - 0.1).max() < 5 * np.sqrt(0.09 / len(starts)) + 1 / count


def test_labels_and_groups_go_with_the_windows():
    images = np.zeros((3, 40, 40, 1), np.uint8)
    cut = data.windows(data.arrays(images, labels=[1, 0, -1], groups=["x", "x", "y"]), 20)
    assert cut.labels.tolist() == [1] * 4 + [0] * 4 + [-1] * 4
    assert cut.groups.tolist() == ["x"] * 8 + ["y"] * 4
    assert [cut.read(index)[1] for index in (0, 4, 8)] == [1, 0, -1]
    train, test = data.split(data.windows(data.arrays(images, labels=[1, 1, 1]), 20), test_share=0.34)
    assert not {*train.image_of} & {*test.image_of}  # the windows of an image stay on one side


@pytest.mark.parametrize("side, stride", [(0, 0), (-1, 0), (10, 11), (10, -1)])
def test_windows_that_cannot_be_are_refused(scenes, side, stride):
    with pytest.raises(ValueError, match=f"got side={side}, stride={stride}"):
        data.windows(scenes, side, stride=stride)


def test_digests_tell_windows_apart(scenes):
    digests = {data.windows(scenes, side, stride=stride).digest() for side, stride in [(64, 0), (64, 32), (128, 0)]}
    assert len({*digests, scenes.digest()}) == 4


class Counted(data.Source):
    """Images that note which windows are read of them. `whole`: the format gives none, so all is decoded at first."""

    name, labels = "counted", None

    def __init__(self, count, *, whole):
        self.count, self.whole, self.opened, self.closed, self.read_windows = count, whole, [], [], []

    def __len__(self):
        return self.count

    def read(self, index):
        raise AssertionError("a whole image was read")

    def open(self, index):
        self.opened.append(index)

        def window(top, left, height, width):
            self.read_windows.append((index, top, left, height, width))
            return np.full((height, width, 1), index, np.uint8)

        stored = Stored((1000, 1000, 1), np.dtype(np.uint8), window, windowed=not self.whole)
        return OpenImage(stored, str(index), close=lambda: self.closed.append(index))


def test_no_more_than_the_window_is_read():
    source = Counted(1, whole=False)
    cut = data.windows(source, 100)
    for index in (5, 99, 5):
        cut.read(index)
    assert source.read_windows == [(0, 0, 500, 100, 100), (0, 900, 900, 100, 100), (0, 0, 500, 100, 100)]
    assert source.opened == [0, 0] and source.closed == [0]  # once for its size, once for its windows


def test_whole_images_are_kept_in_so_much_memory():
    source = Counted(5, whole=True)
    cut = data.Windows(source, 500, memory_bytes=2_000_000)  # two of a million bytes
    source.opened.clear()
    for image in (0, 1, 0, 1, 2, 1, 0):
        cut.read(4 * image)
    assert source.opened == [0, 1, 2, 0]  # 2 takes the place of 0, the one used longest ago


def test_threads_decode_an_image_once():
    source = Counted(1, whole=True)
    cut = data.windows(source, 100)
    source.opened.clear()
    threads = [threading.Thread(target=cut.read, args=(index,)) for index in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.opened == [0]


@pytest.mark.parametrize("at_random", [True, False])
def test_training_reads_windows(scenes, at_random):
    def batches(start=0):
        return pipeline.train_batches(
            data.windows(scenes, 64), seed=3, batch_size=8, image_size=(64, 64), at_random=at_random, start_step=start,
            crops=[RandomCrop((32, 32), (0.3, 1.0), (1.0, 1.0))],
        )  # fmt: skip

    running, again = batches(), batches()
    first, same = next(running), next(again)
    assert ("crops" in first) == at_random and ("image" in first) != at_random
    key = "crops" if at_random else "image"
    np.testing.assert_array_equal(first[key], same[key])
    following = [next(running) for _ in range(4)]
    np.testing.assert_array_equal(following[-1][key], next(batches(start=4))[key])  # no state from batch to batch


def test_an_epoch_later_a_window_lies_elsewhere():
    marked = np.stack(np.meshgrid(np.arange(200), np.arange(200), indexing="ij"), -1).astype(np.uint16)
    cut = data.windows(data.arrays(marked[None]), 50)
    whole = RandomCrop((50, 50), (1.0, 1.0), (1.0, 1.0))
    batches = pipeline.train_batches(cut, seed=0, batch_size=16, image_size=(50, 50), crops=[whole, whole])
    found = [
        {int(i): tuple(view[0, 0]) for i, view in zip(b["index"], b["crops"][0], strict=True)}
        for b in (next(batches), next(batches))
    ]
    assert len(found[0]) == 16 and sum(found[0][k] != found[1][k] for k in range(16)) >= 15
    batch = next(batches)
    np.testing.assert_array_equal(batch["crops"][0], batch["crops"][1])  # both views are of the same window


def test_an_image_that_cannot_be_decoded_is_named_once(tmp_path):
    cv2.imwrite(str(tmp_path / "good.png"), np.zeros((90, 90), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    cut = data.windows(data.folder(tmp_path, channels=None), 30)
    batches = pipeline.eval_batches(cut, image_size=(30, 30), batch_size=100)
    assert len(next(batches)["index"]) == 9 and [*batches.skipped] == ["bad.png"]


@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_size_of_a_jpeg_is_that_of_its_upright_image(tmp_path, orientation):
    from PIL import Image

    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)).save(
        tmp_path / "a.jpg", exif=exif, quality=95
    )
    source = data.folder(tmp_path, channels=None)
    whole, _ = source.read(0)
    with source.open(0) as image:
        assert image.shape == whole.shape
        np.testing.assert_array_equal(image.read(3, 5, 20, 10), whole[3:23, 5:15])


@pytest.mark.parametrize("name", ["a.npy", "a.h5", "a.zarr"])
@pytest.mark.parametrize("gray", [True, False])
def test_arrays_on_file_are_read_by_windows(tmp_path, name, gray):
    images = np.random.default_rng(0).integers(0, 2**12, (2, 90, 70, 6), np.uint16)[..., slice(None) if not gray else 0]
    path = tmp_path / name
    if name.endswith("npy"):
        np.save(path, images)
    elif name.endswith("h5"):
        import h5py

        with h5py.File(path, "w") as file:
            file["images"] = images
    else:
        import zarr

        zarr.save_array(str(path), images)
    source = opening.open_data(str(path), channels=None, window=32)
    assert isinstance(source, data.Windows) and len(source) == 2 * 3 * 3
    for index in (0, 4, 17):
        top, left = place_of(source, index)
        expected = images[source.image_of[index], top : top + 32, left : left + 32]
        np.testing.assert_array_equal(source.read(index)[0], expected if not gray else expected[..., None])
    with source._source.open(0) as image:
        assert image.windowed


def test_a_file_exchanged_for_a_smaller_one_is_read_where_it_can_be(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((90, 90, 2), np.uint8))
    cut = data.windows(data.folder(tmp_path, channels=None), 30)
    np.save(tmp_path / "a.npy", np.ones((40, 20, 2), np.uint8))
    for index in range(9):
        for pixels, _ in (cut.read(index), cut.read_random(index, np.random.default_rng(0))):
            assert pixels.shape == (30, 20, 2) and pixels.all()


def test_open_pair_divides_images_before_it_cuts_them(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(5):
            cv2.imwrite(str(tmp_path / name / f"{k}.png"), np.zeros((60, 60, 3), np.uint8))
    train, test = opening.open_pair(str(tmp_path), window=20)
    assert len(train) == 8 * 9 and len(test) == 2 * 9
    assert not {train.whole_name(k) for k in range(len(train))} & {test.whole_name(k) for k in range(len(test))}
