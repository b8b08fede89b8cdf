"""The operations for images of any number of channels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssl_jax import dist
from ssl_jax.data import color, photometric
from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.normalization import Normalization
from tests.data.drawn_views import PLAIN, many_views, random_images, unit

N = 4000
# By Kolmogorov and Smirnov: 4000 numbers of the distribution exceed it once in 1000 times.
KS = 0.031
CHANNELS = dict(gamma=0.3, channel_mix=0.4, channel_gain=0.2, channel_shift=0.1, noise=0.05, channel_drop=0.3)


def flat(*values):
    """uint8 [4, 4, channels], of one value for each channel."""
    return np.full((4, 4, len(values)), values, np.uint8)


def values(image, **options):
    """float32 [N, channels]: the values of flat views."""
    return many_views(image, Augmentation((4, 4), **PLAIN | {"jitter": 1.0} | options), n=N)[:, 0, 0]


def test_gamma_is_a_power():
    image = np.float32([0.0, 0.04, 0.25, 1.0]).reshape(1, 2, 2)
    gamma = jax.jit(color.adjust_gamma)
    np.testing.assert_allclose(gamma(image, 0.5).ravel(), [0.0, 0.2, 0.5, 1.0], atol=1e-6)
    np.testing.assert_allclose(gamma(image, 2.0).ravel(), [0.0, 0.0016, 0.0625, 1.0], atol=1e-6)


def test_exponents_of_gamma_are_log_uniform_and_common_to_the_channels():
    found = values(flat(51, 102), gamma=0.5)
    logs = np.log(np.log(found) / np.log([0.2, 0.4]))
    np.testing.assert_allclose(logs[:, 0], logs[:, 1], atol=1e-4)
    assert stats.kstest(logs[:, 0], stats.uniform(-0.5, 1.0).cdf).statistic < KS


@pytest.mark.parametrize(
    "options, measure, low, high",
    [
        (dict(channel_gain=0.3), lambda x: x / 0.4, 0.7, 1.3),
        (dict(channel_gain=1.4), lambda x: x / 0.4, 0.0, 2.4),
        (dict(channel_shift=0.2), lambda x: x - 0.4, -0.2, 0.2),
    ],
)
def test_each_channel_has_a_gain_and_a_shift_of_its_own(options, measure, low, high):
    found = measure(values(flat(102, 102, 102, 102, 102), **options))
    for channel in found.T:
        assert stats.kstest(channel, stats.uniform(low, high - low).cdf).statistic < KS
    # Correlations of independent numbers are within 3.7 / sqrt(N) but for one in 5000.
    assert np.abs(np.corrcoef(found.T) - np.eye(5)).max() < 3.7 / np.sqrt(N)


def test_channels_move_towards_each_other_by_a_uniform_share():
    found = values(flat(0, 51, 255), channel_mix=0.5)
    # The middle one moves by up to half of 0.2 down or by up to half of 0.8 up.
    down, up = found[:, 1] < 0.2, found[:, 1] > 0.2
    assert stats.binomtest(int(down.sum()), N, 0.5).pvalue > 1e-3
    for share in ((0.2 - found[down, 1]) / 0.2, (found[up, 1] - 0.2) / 0.8):
        assert stats.kstest(share, stats.uniform(0.0, 0.5).cdf).statistic < 0.044  # of half as many
    # The lowest moves towards 0.2 or 1, the highest towards 0 or 0.2.
    assert found[:, 0].min() >= 0.0 and found[:, 0].max() == pytest.approx(0.5, abs=0.01)
    assert found[:, 2].max() <= 1.0 and found[:, 2].min() == pytest.approx(0.5, abs=0.01)


def test_noise_is_gaussian_of_a_uniform_deviation():
    image = np.full((24, 24, 2), 128, np.uint8)
    views = many_views(image, Augmentation((24, 24), **PLAIN, noise=0.05), n=N) - 128 / 255
    deviations = views.std(axis=(1, 2, 3))
    # 1152 pixels give the deviation to 2 %, which blurs its distribution little.
    assert stats.kstest(deviations, stats.uniform(0.0, 0.05).cdf).statistic < KS
    whole = (views / deviations[:, None, None, None])[:, :2, :2].reshape(N, 8)
    assert stats.kstest(whole.ravel(), stats.norm.cdf).statistic < 1.95 / np.sqrt(whole.size)
    assert np.abs(np.corrcoef(whole.T) - np.eye(8)).max() < 3.9 / np.sqrt(N)
    assert many_views(flat(0, 255), Augmentation((4, 4), **PLAIN, noise=0.5), n=50).min() == 0.0  # clipped


@pytest.mark.parametrize("channels, probability", [(1, 0.9), (2, 0.5), (5, 0.3), (5, 1.0)])
def test_channels_are_dropped_at_their_rate_and_never_all(channels, probability):
    @jax.jit
    def draw(rngs):
        kept = functools.partial(photometric.kept_channels, channels=channels, probability=probability)
        return jax.vmap(lambda key: kept(key))(rngs)

    kept = np.asarray(draw(jax.random.split(jax.random.key(1), N)))
    assert kept.any(axis=1).all()
    # Where all would be dropped, one is kept, any as often.
    expected = probability - probability**channels / channels
    for channel in kept.T:
        assert stats.binomtest(int((~channel).sum()), N, expected).pvalue > 1e-3


def test_a_dropped_channel_is_0_after_the_normalization_and_the_others_are_as_they_were():
    images = random_images(64, 8, 8, 4) // 2 + 60
    batch = {"image": images, "index": np.arange(64)}

    def view(**options):
        augmentation = Augmentation((8, 8), brightness=0.2, **options)
        augmented = make_augment([augmentation], Normalization((0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4)))
        return np.asarray(jax.jit(augmented)(jax.random.key(0), batch)["views"][0])

    whole, dropped = view(), view(channel_drop=0.5)
    gone = (dropped == 0.0).all(axis=(1, 2))
    assert 0.3 < gone.mean() < 0.65
    np.testing.assert_allclose(dropped, np.where(gone[:, None, None, :], 0.0, whole), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_gray_is_the_mean_of_the_channels_and_saturation_is_about_it(channels):
    image = random_images(1, 4, 4, channels)[0].transpose(2, 0, 1) / np.float32(255)
    mean = image.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(jax.jit(color.luma)(image), mean, atol=1e-6)
    half = jax.jit(color.adjust_saturation)(image, 0.5)
    np.testing.assert_allclose(half, (image + mean) / 2, atol=1e-6)
    augmentation = Augmentation((4, 4), **PLAIN, grayscale=1.0)
    (view,) = many_views((255 * image).astype(np.uint8).transpose(1, 2, 0), augmentation, n=1)
    np.testing.assert_allclose(view, np.broadcast_to(mean.transpose(1, 2, 0), view.shape), atol=2e-6 + 1 / 255)


def test_the_jitter_covers_the_channels_too():
    operations = {name: CHANNELS[name] for name in ("gamma", "channel_mix", "channel_gain", "channel_shift")}
    image = flat(51, 102, 153, 204)
    for name, strength in operations.items():
        moved = values(image, **{name: strength}, jitter=0.3) - image[0, 0] / np.float32(255)
        changed = np.abs(moved).max(axis=1) > 1e-6
        assert stats.binomtest(int(changed.sum()), N, 0.3).pvalue > 1e-3


def test_what_is_off_costs_nothing_and_changes_no_other_draws():
    images = random_images(32, 8, 8, 3)
    batch = {"image": images, "index": np.arange(32)}
    others = dict(brightness=0.3, contrast=0.3, hue=0.1, grayscale=0.2, blur=0.5, blur_kernel=3, solarize=0.2)

    def program(**options):
        return make_augment([Augmentation((8, 8), **others | options)], unit(3))

    plain = str(jax.make_jaxpr(program())(jax.random.key(0), batch))
    assert str(jax.make_jaxpr(program(**dict.fromkeys(CHANNELS, 0.0)))(jax.random.key(0), batch)) == plain
    for name, strength in CHANNELS.items():
        assert len(str(jax.make_jaxpr(program(**{name: strength}))(jax.random.key(0), batch))) > len(plain)
    # So weak that nothing is changed by more than rounding.
    weak = dict(gamma=1e-7, channel_mix=1e-7, channel_gain=1e-7, channel_shift=1e-7, noise=1e-7, channel_drop=1e-7)
    a, b = (jax.jit(program(**o))(jax.random.key(0), batch)["views"][0] for o in ({}, weak))
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 2, 13])
def test_devices_make_the_views_of_many_channels_that_one_makes(channels):
    augmentation = Augmentation((9, 9), flip_vertical=0.5, quarter_turns=0.75, brightness=0.4, **CHANNELS)
    augmented = jax.jit(make_augment([augmentation], unit(channels)))
    rng, batch = jax.random.key(3), {"image": random_images(16, 12, 12, channels), "index": np.arange(16)}
    mesh = dist.make_mesh()
    assert mesh.size == 8
    split = dist.map_rows(augmented, mesh)(dist.replicate(rng, mesh), dist.shard_batch(batch, mesh))
    (one,), (many,) = augmented(rng, batch)["views"], split["views"]
    assert one.shape == (16, 9, 9, channels) and jnp.isfinite(one).all()
    np.testing.assert_allclose(one, many, atol=2e-5)
