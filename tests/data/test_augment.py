import dataclasses
import functools
import itertools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from ssl_jax import dist
from ssl_jax.data import color, photometric, resample, sources
from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.crop import CROP_TRIES, RandomCrop
from ssl_jax.data.host_resample import resample as resample_to
from ssl_jax.data.normalization import Normalization
from ssl_jax.data.reader import Reader
from tests.data.drawn_views import PLAIN, many_views, random_images, unit, views_and_boxes

REFERENCES = Path(__file__).parents[1] / "references"
# From torchvision, by references/make_augment.py: "operation/channels/numbers" -> float32 [height, width, channels]
TORCHVISION = dict(np.load(REFERENCES / "augment.npz"))
ALL = Augmentation(
    (16, 12),
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    grayscale=0.2,
    blur=0.5,
    solarize=0.2,
    blur_kernel=3,
)


def cases(*operations):
    return [key for key in TORCHVISION if key.split("/")[0] in operations]


def reference(key):
    """(image, float in 0..1, [channels, height, width]; the numbers of the key; what torchvision gives)"""
    _, channels, *numbers = key.split("/")
    image = TORCHVISION[f"image/{channels}"].transpose(2, 0, 1) / np.float32(255)
    return image, [float(number) for number in numbers], TORCHVISION[key].transpose(2, 0, 1)


# torchvision's luma has .2989 for red where ours has .299: 1e-4 * the red, here times up to 1 (contrast 1.7: 0.7).
OPERATIONS = {
    "brightness": (color.adjust_brightness, 1e-6),
    "contrast": (color.adjust_contrast, 1.1e-4),
    "saturation": (color.adjust_saturation, 1.1e-4),
    "hue": (color.adjust_hue, 1e-5),
    "solarize": (color.solarize, 1e-6),
    "grayscale": (color.luma, 1.1e-4),
}


@pytest.mark.parametrize("key", cases(*OPERATIONS))
def test_color_operations_are_torchvisions(key):
    image, numbers, expected = reference(key)
    operation, atol = OPERATIONS[key.split("/")[0]]
    result = np.broadcast_to(jax.jit(operation)(image, *numbers), expected.shape)  # numbers share a program
    np.testing.assert_allclose(result, expected, atol=atol)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crops_are_torchvisions(interpolation):
    examples = [reference(key) for key in cases(interpolation)]
    matrix = functools.partial(resample.interpolation_matrix, interpolation=interpolation)

    def crop(image, box, new, reverse):
        _, height, width = image.shape
        rows = matrix(box[0], box[2], old=height, new=new[0])
        columns = matrix(box[1], box[3], old=width, new=new[1], reverse=reverse)
        return resample.separable(image, rows, columns)

    @jax.jit
    def crops(images, boxes, reverse):
        sizes = [tuple(map(int, numbers[4:])) for _, numbers, _ in examples]
        return [crop(*each, reverse) for each in zip(images, boxes, sizes, strict=True)]

    images, boxes = [image for image, *_ in examples], [np.float32(numbers[:4]) for _, numbers, _ in examples]
    # float32 leaves a place on a line of 24 pixels uncertain by some 1e-6 pixels, and the kernels' slope is up to 1.6.
    check = functools.partial(np.testing.assert_allclose, atol=5e-6)
    reversed_too = zip(crops(images, boxes, False), crops(images, boxes, True), strict=True)
    for (_, _, expected), (found, found_reversed) in zip(examples, reversed_too, strict=True):
        check(found, expected)
        check(found_reversed, expected[:, :, ::-1])


def test_blur_is_torchvisions():
    examples = [reference(key) for key in cases("blur")]

    def blurred(image, sigma, taps):
        rows, columns = (resample.blur_matrix(sigma, taps=taps, size=size) for size in image.shape[1:])
        return resample.separable(image, rows, columns)

    @jax.jit
    def all_blurred(images, sigmas):
        all_taps = [int(taps) for _, (taps, _), _ in examples]
        return [blurred(*each) for each in zip(images, sigmas, all_taps, strict=True)]

    images, sigmas = [image for image, *_ in examples], [np.float32(sigma) for _, (_, sigma), _ in examples]
    for (_, _, expected), found in zip(examples, all_blurred(images, sigmas), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize("size, taps", [((224, 224), 23), ((96, 128), 9), ((32, 32), 3), ((28, 28), 3)])
def test_blur_has_the_taps_of_simclrs_code(size, taps):
    assert Augmentation(size).blur_taps == taps


BOXES = {  # as in references/make_crop.py, which has the boxes from torchvision
    "landscape": ((375, 500), (0.08, 1.0), (3 / 4, 4 / 3)),
    "square": ((32, 32), (0.2, 1.0), (3 / 4, 4 / 3)),
    "elongated": ((40, 400), (0.3, 1.0), (3 / 4, 4 / 3)),  # mostly the largest box in the middle
}


def boxes(name, draws):
    """As many as there are draws; they are padded, so that a name's tests share a program."""
    padded = np.resize(np.asarray(draws, np.float32), (4000, CROP_TRIES, 4))
    return np.asarray(_boxes(name)(padded))[: len(draws)]


@functools.cache
def _boxes(name):
    image_size, area, aspect = BOXES[name]
    crop = RandomCrop((8, 8), area, aspect)
    return jax.jit(jax.vmap(lambda draws: resample.random_box(draws, image_size=image_size, crop=crop)))


@pytest.mark.parametrize("name", BOXES)
def test_boxes_are_distributed_as_torchvisions(name):
    (height, width), *_ = BOXES[name]
    theirs = np.load(REFERENCES / "crop.npz")[name].astype(float)
    ours = boxes(name, np.random.default_rng(0).random((len(theirs), CROP_TRIES, 4)))
    np.testing.assert_array_equal(ours, np.rint(ours))
    ours = ours.astype(float)
    top, left, h, w = ours.T
    assert (min(top.min(), left.min()), min(h.min(), w.min()) > 0) == (0, True)
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    for statistic in (
        lambda box: box[:, 2] * box[:, 3],  # area
        lambda box: box[:, 3] / box[:, 2],  # aspect
        lambda box: box[:, 0],
        lambda box: box[:, 1],
    ):
        # Two samples of 4000 of one distribution exceed 0.0435 once in 1000 times.
        assert stats.ks_2samp(statistic(ours), statistic(theirs)).statistic < 0.0435


@pytest.mark.parametrize("name", BOXES)
def test_the_device_crops_where_the_host_would(name):
    (height, width), area, aspect = BOXES[name]
    crop = RandomCrop((8, 8), area, aspect)
    theirs = [crop.box(height, width, np.random.default_rng(seed)) for seed in range(1000)]
    ours = boxes(name, [np.random.default_rng(seed).random((CROP_TRIES, 4)) for seed in range(1000)])
    # Where float32 and float64 round a side near x.5 differently it is one pixel longer.
    assert np.mean(np.any(ours != np.array(theirs), axis=1)) < 0.005


def test_where_no_try_fits_the_device_crops_where_the_host_would():
    sizes = [(100, 10), (10, 100), (30, 30), (1, 50)]
    crop = RandomCrop((8, 8), area=(2.0, 2.0), aspect=(3 / 4, 4 / 3))  # twice the image
    run = jax.jit(lambda draws: [resample.random_box(draws, image_size=size, crop=crop) for size in sizes])
    for size, box in zip(sizes, run(np.full((CROP_TRIES, 4), 0.5, np.float32)), strict=True):
        assert tuple(np.asarray(box)) == crop.box(*size, np.random.default_rng(0))


@pytest.mark.parametrize("channels", [1, 5])
def test_where_nothing_is_random_the_view_is_the_image(channels):
    images = random_images(2, 12, 12, channels)
    batch = {"image": images, "index": np.arange(2), "label": np.zeros(2, np.int32)}
    mean, std = tuple(np.linspace(0.3, 0.5, channels)), tuple(np.linspace(0.2, 0.3, channels))
    augmentations = [Augmentation((12, 12), **PLAIN), Augmentation((12, 12), **PLAIN | {"flip": 1.0})]
    result = jax.jit(make_augment(augmentations, Normalization(mean, std)))(jax.random.key(0), batch)
    assert set(result) == {"boxes", "views", "masks", "index", "label"}
    expected = (images / 255 - mean) / std
    np.testing.assert_allclose(result["views"][0], expected, atol=1e-5)
    np.testing.assert_allclose(result["views"][1], expected[:, :, ::-1], atol=1e-5)


def test_bicubic_views_stay_in_range():
    """Between black and white the kernel itself overshoots."""
    board = (np.indices((6, 6)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, :, :, None]
    augmented = jax.jit(make_augment([Augmentation((12, 12), **PLAIN, interpolation="bicubic")], unit(1)))
    (view,) = augmented(jax.random.key(0), {"image": board, "index": np.arange(1)})["views"]
    assert (view.min(), view.max()) == (0.0, 1.0)


def test_crops_of_the_host_are_only_flipped():
    crops = tuple(random_images(2, *size, 3) for size in [(12, 10), (6, 6)])
    augmentations = [Augmentation((12, 10), flip=1.0), Augmentation((6, 6), flip=0.0)]
    augmented = jax.jit(make_augment(augmentations, unit(3)))
    boxes = (np.full((2, 4), 0.25, np.float32), np.full((2, 4), 0.5, np.float32))
    made = augmented(jax.random.key(0), {"crops": crops, "boxes": boxes, "index": np.arange(2)})
    views = made["views"]
    np.testing.assert_array_equal(made["boxes"][0], [[0.25, 0.25, 0.25, 0.25, 1.0, 0.0]] * 2)
    np.testing.assert_array_equal(made["boxes"][1], [[0.5, 0.5, 0.5, 0.5, 0.0, 0.0]] * 2)
    np.testing.assert_allclose(views[0], crops[0][:, :, ::-1] / 255, atol=1e-6)
    np.testing.assert_allclose(views[1], crops[1] / 255, atol=1e-6)


@pytest.mark.parametrize(
    "operation",
    [
        {"flip": 0.3},
        {"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5, "jitter": 0.3},  # all or none of them
        {"grayscale": 0.3},
        {"blur": 0.3, "blur_sigma": (1.0, 2.0), "blur_kernel": 3},
        {"solarize": 0.3},
    ],
    ids=lambda operation: next(iter(operation)),
)
def test_an_operation_is_applied_at_its_rate(operation):
    image = random_images(1, 8, 8, 3)[0]
    views = many_views(image, Augmentation((8, 8), **PLAIN | operation))
    changed = np.abs(views - image / np.float32(255)).max(axis=(1, 2, 3)) > 1e-6
    assert changed.mean() == pytest.approx(0.3, abs=0.025)  # 3.5 standard deviations


def test_operations_are_applied_independently():
    # Bright and dark, so that solarize shows in every combination.
    image = np.array([[[230, 204, 26], [51, 26, 102]]] * 2, np.uint8)
    options = {"flip": 0.5, "grayscale": 0.5, "blur": 0.5, "blur_kernel": 3, "blur_sigma": (0.5, 0.5), "solarize": 0.5}
    views = many_views(image, Augmentation((2, 2), **PLAIN | options))
    _, counts = np.unique(views.reshape(len(views), -1).round(3), axis=0, return_counts=True)
    assert len(counts) == 16
    np.testing.assert_allclose(counts / counts.sum(), 1 / 16, atol=0.015)  # 3.9 standard deviations


def constant(*color):
    return np.full((4, 4, 3), color, np.uint8)


@pytest.mark.parametrize(
    "options, image, measure, low, high",
    [
        ({"brightness": 0.6}, constant(51, 51, 51), lambda x: x[:, 0, 0, 0] / 0.2, 0.4, 1.6),
        ({"brightness": 1.5}, constant(51, 51, 51), lambda x: x[:, 0, 0, 0] / 0.2, 0.0, 2.5),
        (
            {"contrast": 0.6},
            np.stack([constant(102, 102, 102)[0], constant(153, 153, 153)[0]] * 2),
            lambda x: (x[:, 1, 0, 0] - x[:, 0, 0, 0]) / 0.2,
            0.4,
            1.6,
        ),
        ({"saturation": 0.6}, constant(153, 102, 102), lambda x: (x[:, 0, 0, 0] - x[:, 0, 0, 1]) / 0.2, 0.4, 1.6),
        # From red, a turn by t takes green to 6t, or blue to -6t.
        ({"hue": 0.1}, constant(255, 0, 0), lambda x: (x[:, 0, 0, 1] - x[:, 0, 0, 2]) / 6, -0.1, 0.1),
        # A line's Gaussian: center / neighbor = exp(1 / (2 sigma^2)).
        (
            {"blur": 1.0, "blur_sigma": (0.5, 1.5), "blur_kernel": 3},
            np.pad(constant(255, 255, 255)[:1, :1], ((2, 2), (2, 2), (0, 0))),
            lambda x: (2 * np.log(x[:, 2, 2, 0] / x[:, 2, 1, 0])) ** -0.5,
            0.5,
            1.5,
        ),
    ],
    ids=["brightness", "strong brightness", "contrast", "saturation", "hue", "blur"],
)
def test_strengths_are_uniform(options, image, measure, low, high):
    views = many_views(image, Augmentation(image.shape[:2], **PLAIN | {"jitter": 1.0} | options))
    # By Kolmogorov and Smirnov: 4000 uniform numbers exceed 0.031 once in 1000 times.
    assert stats.kstest(measure(views), stats.uniform(low, high - low).cdf).statistic < 0.031


@pytest.mark.parametrize("names", [("brightness", "contrast"), ("brightness", "contrast", "saturation", "hue")])
def test_each_order_of_the_jitter_is_as_frequent(names, monkeypatch):
    # Each operation appends its digit to the one pixel.
    spies = {name: lambda image, _, digit=digit: 10.0 * image + digit for digit, name in enumerate(names, start=1)}
    monkeypatch.setattr(photometric, "ADJUSTMENTS", spies)
    strengths = dict.fromkeys(names, 0.1)
    augmentation = Augmentation((1, 1), **PLAIN, **strengths, jitter=1.0)
    views = many_views(np.zeros((1, 1, 3), np.uint8), augmentation, n=24000)
    orders, counts = np.unique(views[:, 0, 0, 0].round().astype(int), return_counts=True)
    digits = "1234"[: len(names)]
    assert set(orders) == {int("".join(order)) for order in itertools.permutations(digits)}
    assert stats.chisquare(counts).pvalue > 1e-3


def test_the_order_of_the_jitter_matters_as_torchvision_has_it():
    """Contrast, then brightness, with values clipped in between; the random numbers are given."""
    image, *_ = reference("contrast/3/1.7")
    augmentation = Augmentation((24, 20), brightness=0.6, contrast=0.7, jitter=1.0)
    draws = {"order": np.float32([0.9, 0.2, 0.0, 0.0]), "jitter": np.float32(0.5)}
    draws |= {"brightness": np.float32(0.0), "contrast": np.float32(1.0)}
    expected = 0.4 * TORCHVISION["contrast/3/1.7"].transpose(2, 0, 1)
    jitter = jax.jit(functools.partial(photometric.jitter, augmentation=augmentation))
    np.testing.assert_allclose(jitter(image, draws), expected, atol=1e-4)


def batch_of(indices):
    images = random_images(64, 18, 18, 3)[indices]
    return {"image": images, "index": np.asarray(indices, np.int32)}


@pytest.fixture(scope="module")
def two_views():
    return jax.jit(make_augment([ALL, ALL], Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))))


def test_a_row_does_not_depend_on_the_others(two_views):
    rng = jax.random.key(3)
    whole = two_views(rng, batch_of(np.arange(64)))["views"]
    chosen = np.random.default_rng(0).integers(0, 64, 64)  # other rows beside each, some twice
    part = two_views(rng, batch_of(chosen))["views"]
    for w, p in zip(whole, part, strict=True):
        np.testing.assert_allclose(w[chosen], p, atol=2e-5)


def test_views_examples_and_steps_differ(two_views):
    batch = {"image": np.tile(batch_of([0])["image"], (64, 1, 1, 1)), "index": np.arange(64, dtype=np.int32)}
    views = [view for seed in range(2) for view in two_views(jax.random.key(seed), batch)["views"]]
    rows = np.concatenate(views).reshape(256, -1)
    assert len(np.unique(rows.round(4), axis=0)) == 256


def test_devices_make_the_views_that_one_makes(two_views):
    rng, batch = jax.random.key(3), batch_of(np.arange(64))
    mesh = dist.make_mesh()
    assert mesh.size == 8
    split = dist.map_rows(two_views, mesh)(dist.replicate(rng, mesh), dist.shard_batch(batch, mesh))
    for one, many in zip(two_views(rng, batch)["views"], split["views"], strict=True):
        np.testing.assert_allclose(one, many, atol=2e-5)


@pytest.mark.parametrize("host", [False, True])
def test_what_is_off_costs_nothing(host):
    off = {"brightness": 0.5, "contrast": 0.5, "hue": 0.5, "jitter": 0.0}
    off |= {"blur": 0.0, "blur_sigma": (1.0, 2.0), "blur_kernel": 3}
    off |= {"solarize": 0.0, "solarize_threshold": 0.1}

    def program(augmentation):
        images = np.zeros((4, 8, 8, 3), np.uint8)
        given = {"crops": (images,), "boxes": (np.zeros((4, 4), np.float32),)} if host else {"image": images}
        batch = {"index": np.arange(4)} | given
        return str(jax.make_jaxpr(make_augment([augmentation], unit(3)))(jax.random.key(0), batch))

    plain = Augmentation((8, 8), flip=0.0)
    of_plain = program(plain)
    assert program(dataclasses.replace(plain, **off)) == of_plain
    for name in ("jitter", "blur", "solarize"):
        assert len(program(dataclasses.replace(plain, **off | {name: 0.5}))) > len(of_plain)


@pytest.mark.parametrize("channels", [1, 5])
def test_brightness_contrast_blur_and_solarize_take_any_number_of_channels(channels):
    augmentation = Augmentation((6, 9), brightness=0.5, contrast=0.5, jitter=1.0, blur=1.0, blur_kernel=3, solarize=1.0)
    batch = {"image": random_images(3, 8, 8, channels), "index": np.arange(3)}
    (view,) = jax.jit(make_augment([augmentation], unit(channels)))(jax.random.key(0), batch)["views"]
    assert view.shape == (3, 6, 9, channels)
    assert -1e-6 < view.min() < view.max() < 1 + 1e-6  # the weights of a blur add up to 1 but for rounding


def test_contrast_of_many_channels_is_about_their_mean():
    image = np.float32([0.1, 0.3, 0.5, 0.7, 0.9]).reshape(5, 1, 1)
    np.testing.assert_allclose(jax.jit(color.adjust_contrast)(image, 0.5).ravel(), [0.3, 0.4, 0.5, 0.6, 0.7], atol=1e-6)


@pytest.mark.parametrize(
    "options, channels, message",
    [
        ({"hue": 0.1}, 1, "hue 0.1 .* 1 channel: set hue to 0, and use brightness, contrast and gamma"),
        ({"hue": 0.1}, 5, "hue 0.1 .* 5 channels: set hue to 0 and channel_mix to 0.1"),
        ({"quarter_turns": 0.5, "size": (32, 24)}, 3, r"quarter_turns 0.5 needs a square view, got size \(32, 24\)"),
        ({"flip_vertical": 1.5}, 3, "flip_vertical must be in 0..1, got 1.5"),
        ({"gamma": -0.1}, 3, "gamma must be at least 0"),
        ({"channel_mix": 1.1}, 5, "channel_mix must be in 0..1"),
        ({"channel_drop": 1.1}, 5, "channel_drop must be in 0..1"),
        ({"flip": 1.5}, 3, "flip must be in 0..1, got 1.5"),
        ({"blur": -0.1}, 3, "blur must be"),
        ({"jitter": math.nan}, 3, "jitter must be"),
        ({"brightness": -0.4}, 3, "brightness must be at least 0, got -0.4"),
        ({"hue": 0.6}, 3, "hue must be in 0..0.5"),
        ({"crop_area": (0.2, 1.1)}, 3, r"crop_area must be in \(0, 1\], got \(0.2, 1.1\)"),
        ({"crop_area": (1.0, 0.2)}, 3, r"crop_area must be \(least, most\) with least <= most, got \(1.0, 0.2\)"),
        ({"crop_aspect": (0.0, 1.0)}, 3, "crop_aspect must be"),
        ({"blur_sigma": (0.0, 1.0)}, 3, "blur_sigma must be"),
        ({"interpolation": "nearest"}, 3, "bilinear, bicubic, got 'nearest'"),
        ({"size": (0, 32)}, 3, r"size must be .* got \(0, 32\)"),
        ({"blur_kernel": 4}, 3, "blur_kernel must be odd"),
        ({"blur_kernel": 65}, 3, "at most 63"),
        ({"blur": 0.5, "size": (19, 40)}, 3, "does nothing at size .* set blur_kernel to 3"),
    ],
)
def test_what_cannot_be_is_refused(options, channels, message):
    augmentation = Augmentation(**{"size": (32, 32)} | options)
    with pytest.raises(ValueError, match=message):
        augmentation.check(channels)
    batch = {"image": np.zeros((1, 32, 32, channels), np.uint8), "index": np.arange(1)}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(make_augment([augmentation], unit(channels)), jax.random.key(0), batch)


@pytest.mark.parametrize(
    "image, expected",
    [
        (np.array([0, 51, 255], np.uint8), [-1.0, -2.0, 2.0]),
        (np.array([0.0, 0.2, 1.0], np.float32), [-1.0, -2.0, 2.0]),
        (np.array([0, 0, 1], np.float32), [-1.0, -4.0, 2.0]),  # floats are in 0..1, whatever they hold
    ],
)
def test_normalize(image, expected):
    normalized = jax.jit(Normalization((0.25, 0.4, 0.5), (0.25, 0.1, 0.25)))
    result = np.asarray(normalized(image[None, None, None]))
    np.testing.assert_allclose(result.ravel(), expected, atol=1e-6)
    assert result.dtype == jnp.float32


def test_normalize_refuses_numbers_for_other_channels():
    with pytest.raises(ValueError, match="images of 3 channels"):
        Normalization((0.5,), (0.5,))(np.zeros((1, 2, 2, 3), np.uint8))


def test_boxes_say_where_a_view_lies_in_its_image():
    """On an image whose pixels are their own coordinates, a view's mean is its box's middle, its ends the box's."""
    row, column = np.meshgrid(np.arange(64), np.arange(48), indexing="ij")
    image = np.stack([(row + 0.5) / 64, (column + 0.5) / 48], axis=-1).astype(np.float32)
    augmentation = Augmentation((16, 16), crop_area=(0.1, 1.0), flip=0.5, jitter=0.0)
    views, boxes = views_and_boxes(image, augmentation, 50)
    top, left, height, width, flipped, _ = boxes.T
    rows, columns = views[..., 0], views[..., 1]
    np.testing.assert_allclose(rows.mean(axis=(1, 2)), top + height / 2, atol=0.01)
    np.testing.assert_allclose(columns.mean(axis=(1, 2)), left + width / 2, atol=0.01)
    np.testing.assert_allclose(rows[:, 12].mean(axis=1) - rows[:, 3].mean(axis=1), height * 9 / 16, atol=0.01)
    np.testing.assert_array_equal(columns[:, 0, 0] > columns[:, 0, -1], flipped == 1.0)
    assert 10 < flipped.sum() < 40


PILLOW = {
    "posterize": (color.posterize, ImageOps.posterize, (4, 6, 8)),
    "sharpness": (color.adjust_sharpness, lambda image, v: ImageEnhance.Sharpness(image).enhance(v), (0.1, 1.0, 1.9)),
    "autocontrast": (lambda image, _: color.autocontrast(image), lambda image, _: ImageOps.autocontrast(image), (0,)),
}


@pytest.mark.parametrize("name", PILLOW)
def test_photometric_operations_are_pillows(name):
    ours, theirs, numbers = PILLOW[name]
    pixels = random_images(1, 9, 7, 3)[0] // 2 + 30
    pixels[..., 2] = 77  # a channel of one value
    operation = jax.jit(ours)
    for number in numbers:
        expected = np.asarray(theirs(Image.fromarray(pixels), number)).transpose(2, 0, 1)
        result = operation(pixels.transpose(2, 0, 1) / np.float32(255), float(number))
        np.testing.assert_allclose(255 * result, expected, atol=1.5)  # Pillow rounds: before the factor 1.9, and after


def test_photometric_changes_two_thirds_of_the_views_and_keeps_the_rest():
    image = random_images(1, 6, 6, 3)[0] // 2
    views = many_views(image, Augmentation((6, 6), **PLAIN, photometric=0.66), n=1000)
    same = np.isclose(views, image / 255, atol=1e-5).all(axis=(1, 2, 3))
    assert abs(np.mean(~same) - 0.66) < 0.05  # three deviations of 0.015
    # The contrast is stretched last: each channel of a changed view spans 0..1.
    spans = views[~same].max(axis=(1, 2)) - views[~same].min(axis=(1, 2))
    assert np.mean(np.isclose(spans, 1.0, atol=1e-5)) > 0.95  # a threshold at the lowest value inverts what there is


@pytest.mark.parametrize("degrees", [2.0, -37.0, 90.0])
def test_an_image_is_turned_as_by_pillow(degrees):
    pixels = random_images(1, 21, 21, 1)[0]
    expected = np.asarray(Image.fromarray(pixels[..., 0]).rotate(degrees))
    result = np.asarray(jax.jit(resample.turned)(pixels.transpose(2, 0, 1) / np.float32(255), degrees))[0]
    # Where a pixel lies in the middle of two, rounding decides.
    assert np.mean(np.rint(255 * result) == expected) > 0.98


def test_views_are_turned_to_either_side_by_no_more_than_asked():
    """A bright pixel to the right of the middle shows the angle by its row."""
    image = np.zeros((41, 41, 1), np.uint8)
    image[20, 38] = 255
    views = many_views(image, Augmentation((41, 41), **PLAIN, rotate=30.0), n=300)
    bright = views[..., 0] > 0.5
    rows = np.array([np.argwhere(view)[:, 0].mean() for view in bright if view.any()]) - 20
    assert np.abs(rows).max() <= 9.5  # 18 * sin(30 degrees), and rounding
    assert min(np.mean(rows > 4), np.mean(rows < -4)) > 0.15


def test_the_device_takes_the_windows_that_the_host_takes():
    image = random_images(1, 30, 45, 3)[0]
    augmentation = Augmentation((18, 24), shorter_side=20, padding=3, flip=0.0)
    views, boxes = views_and_boxes(image, augmentation, 30)
    resized = resample_to(image, (20, 30), "bilinear")
    padded = np.pad(resized, ((3, 3), (3, 3), (0, 0)))
    places = set()
    for view, (top, left, height, width, *_) in zip(views, boxes, strict=True):
        row, column = round(float(top) * 20), round(float(left) * 30)
        places.add((row, column))
        window = padded[row + 3 : row + 21, column + 3 : column + 27]
        np.testing.assert_allclose(255 * np.asarray(view), window, atol=1.5)  # Pillow rounds twice
        np.testing.assert_allclose((height, width), (18 / 20, 24 / 30))
    rows, columns = (np.array(x) for x in zip(*places, strict=True))
    assert (rows.min(), rows.max(), columns.min() < 0, columns.max() > 6) == (-3, 5, True, True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"padding": 4}, "padding needs shorter_side"),
        ({"shorter_side": 10}, r"a window of \(12, 12\) is larger than shorter_side=10 .* use shorter_side=12 or more"),
        ({"rotate": -1.0}, "rotate must be in 0..180"),
        ({"photometric": 1.5}, "photometric must be in 0..1"),
    ],
)
def test_refuses_impossible_windows_and_turns(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation((12, 12), **options).check(3)


SHIFTED = dict(size=(6, 8), crop_area=(0.2, 0.5), flip=0.5)


def shifted_boxes(host):
    """Of 600 images of 40 x 50 pixels: the boxes of the first view, and of a second one that is moved."""
    augmentations = [Augmentation(**SHIFTED), Augmentation(**SHIFTED, shift=0.5, brightness=0.4)]
    images, index = np.zeros((600, 40, 50, 1), np.uint8), np.arange(600)
    augmented = jax.jit(make_augment(augmentations, unit(1)))
    if not host:
        return augmented(jax.random.key(0), {"image": images, "index": index})["boxes"]
    source = sources.ArraySource(images, np.zeros(600, np.int32))
    crops = [augmentation.crop for augmentation in augmentations]
    batch = Reader(source, 1).read_crops(
        index.tolist(), crops, 0, 1, (0.0,), like=np.zeros((40, 50, 1), np.uint8), at_random=False
    )
    kept = {name: batch[name] for name in ("crops", "boxes")}
    return augmented(jax.random.key(0), {**kept, "index": index})["boxes"]


@pytest.mark.parametrize("host", [False, True])
def test_a_shifted_view_is_the_first_moved_by_no_more_than_asked_within_the_image(host):
    first, moved = (np.asarray(boxes, float) for boxes in shifted_boxes(host))
    np.testing.assert_array_equal(moved[:, 2:], first[:, 2:])  # its size, whether it is mirrored, its turn
    pixels = (moved - first)[:, :2] * [40, 50]
    most = 0.5 * first[:, 2:4] * [40, 50]
    assert np.all(pixels > -0.01) and np.all(pixels < most + 0.51)
    assert np.all(moved[:, :2] + moved[:, 2:4] < 1 + 1e-6)
    room = np.all(first[:, :2] + 1.5 * first[:, 2:4] < 1, axis=1)  # where the image does not stop it
    # A uniform share has a mean of 1/2; of 40 images or more it is off by 0.15 in one of 1000.
    assert room.sum() > 40
    np.testing.assert_allclose(np.mean((pixels / most)[room]), 0.5, atol=0.15)
    assert 200 < first[:, 4].sum() < 400


@pytest.mark.parametrize(
    "augmentations, message",
    [
        ([{"shift": 0.1}], r"this is the first; use shift=0\.0"),
        ([{}, {"shift": 0.1, "flip": 0.0}], r"whose flip is 0\.5; use the same, got 0\.0"),
        ([{}, {"shift": 0.1, "crop_area": (0.3, 0.5)}], r"whose crop_area is \(0\.2, 0\.5\)"),
    ],
)
def test_refuses_a_shift_of_another_crop(augmentations, message):
    with pytest.raises(ValueError, match=message):
        make_augment([Augmentation(**SHIFTED | options) for options in augmentations], unit(1))


def test_refuses_a_shift_of_a_window():
    with pytest.raises(ValueError, match=r"use shorter_side=0, got 8"):
        Augmentation(**SHIFTED, shift=0.1, shorter_side=8).check(1)
