import numpy as np
import pytest
from sklearn.decomposition import PCA

from ssl_jax.report import patches


def features(shape=(2, 4, 5, 7), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_components_are_scikit_learn_s_over_the_whole_batch():
    x = features() * np.array([9, 5, 3, 1, 1, 1, 1], np.float32)
    expected = PCA(3).fit_transform(x.reshape(-1, 7).astype(np.float64))
    picture = patches.pca_picture(x)
    assert (picture.shape, picture.dtype) == ((2, 4, 5, 3), np.uint8)
    for channel in range(3):
        made, wanted = picture[..., channel].ravel().astype(float), expected[:, channel]
        inside = (made > 0) & (made < 255)  # the outermost percent of each side is clipped
        assert inside.sum() >= 36
        assert np.corrcoef(made[inside], wanted[inside])[0, 1] > 0.9999
        assert made.min() == 0 and made.max() == 255


def test_two_kinds_of_patches_get_two_colors():
    kinds = np.array([[0, 1, 0], [1, 1, 0]])
    picture = patches.pca_picture(np.eye(2, 6, dtype=np.float32)[kinds][None])
    assert {*picture[0, ..., 0][kinds == 0]} | {*picture[0, ..., 0][kinds == 1]} == {0, 255}
    assert len({*picture[0, ..., 0][kinds == 0]}) == 1
    assert (picture[..., 1:] == patches.FLAT).all()  # one direction is all there is


def test_an_odd_patch_among_like_ones_is_seen():
    x = np.zeros((1, 20, 20, 3), np.float32)
    x[0, 3, 4] = 1.0
    picture = patches.pca_picture(x)[0, ..., 0]
    assert picture[3, 4] != picture[0, 0]
    assert (np.delete(picture.ravel(), 3 * 20 + 4) == picture[0, 0]).all()


@pytest.mark.parametrize("x", [np.full((2, 3, 3, 8), 0.7, np.float32), features((1, 1, 1, 4))], ids=["alike", "single"])
def test_patches_that_do_not_differ_are_gray(x):
    assert (patches.pca_picture(x) == patches.FLAT).all()


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scale_of_the_features_does_not_matter(scale):
    # Of components, not of colors: float32 rounding moves a color by one.
    difference = patches.pca_picture(features()) - patches.pca_picture(features() * np.float32(scale)).astype(int)
    assert np.abs(difference).max() <= 1


def test_features_that_cannot_be_drawn_are_refused():
    broken = features()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="has diverged"):
        patches.pca_picture(broken)
    with pytest.raises(ValueError, match=r"\(0, 4, 5, 7\); give at least one image"):
        patches.pca_picture(features((0, 4, 5, 7)))


HOT, COLD = (np.array(patches.HEAT(x)[:3]) * 255 for x in (1.0, 0.0))


def test_attention_is_hot_where_the_heads_mean_looks():
    attention = np.zeros((2, 2, 3, 3), np.float32)
    attention[0, 0, 0, 0] = 0.4  # of two heads that look at corners
    attention[0, 1, 2, 2] = 0.8
    images = np.zeros((2, 12, 12, 1), np.uint8)
    picture = patches.attention_picture(attention, images)
    assert (picture.shape, picture.dtype) == ((2, 12, 12, 3), np.uint8)
    np.testing.assert_allclose(picture[0, 11, 11], 0.65 * HOT, atol=1)
    np.testing.assert_allclose(picture[0, 0, 0], 0.65 * np.array(patches.HEAT(0.5)[:3]) * 255, atol=2)
    np.testing.assert_allclose(picture[0, 0, 11], 0.65 * COLD, atol=1)
    np.testing.assert_allclose(picture[1], np.broadcast_to(0.65 * COLD, (12, 12, 3)), atol=1)  # no attention at all


def test_attention_is_scaled_within_its_image_and_the_image_shows_through():
    attention = np.full((2, 1, 2, 2), 0.001, np.float32) * np.array([1, 500], np.float32)[:, None, None, None]
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[:, :, 2:] = (0, 255, 255)
    picture = patches.attention_picture(attention, images)
    np.testing.assert_array_equal(picture[0], picture[1])
    np.testing.assert_allclose(picture[0, 0, 0], 0.65 * HOT, atol=1)
    np.testing.assert_allclose(picture[0, 0, 3], 0.65 * HOT + 0.35 * 170, atol=1)


@pytest.mark.parametrize(
    "attention, told",
    [
        (np.full((2, 1, 2, 2), -0.1, np.float32), "after its softmax"),
        (np.full((2, 1, 2, 2), np.nan, np.float32), "after its softmax"),
        (np.ones((3, 1, 2, 2), np.float32), "has 3 images and 1 heads, but there are 2 images"),
        (np.ones((2, 0, 2, 2), np.float32), "with at least one head"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_attention_that_cannot_be_drawn_is_refused(attention, told):
    with pytest.raises(ValueError, match=told):
        patches.attention_picture(attention, np.zeros((2, 4, 4, 1), np.uint8))
