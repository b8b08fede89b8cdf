import functools

import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks

# Unequal numbers of masked tokens, so that a mean of means is not the mean.
MASK = np.array([[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]], bool)


def patches(batch=4, tokens=4, dim=5, seed=0):
    return np.random.default_rng(seed).normal(size=(2, batch, tokens, dim)).astype(np.float32)


def masked_mean(of_token, *arrays, mask):
    """The mean of of_token(rows of the arrays) over the masked tokens, one by one."""
    return np.mean([of_token(*(a[i, j] for a in arrays)) for i, j in np.argwhere(mask)])


def squared_error_of_normalized(p, t):
    t = (t - np.mean(t)) / np.sqrt(np.var(t, ddof=1) + 1e-6)
    return np.mean((p - t) ** 2)


def smooth_l1(p, t, beta):
    return np.mean([d * d / (2 * beta) if d < beta else d - beta / 2 for d in np.abs(p - t)])


def one_less_cosine(p, t):
    return 1.0 - np.dot(p, t) / np.linalg.norm(p) / np.linalg.norm(t)


REGRESSIONS = {
    "normalized pixels": (losses.masked_pixels, squared_error_of_normalized),
    "pixels": (
        functools.partial(losses.masked_pixels, normalize=False),
        lambda p, t: np.mean((p - t) ** 2),
    ),
    "cosine": (losses.masked_cosine, one_less_cosine),
    "l1": (losses.masked_l1, lambda p, t: np.mean(np.abs(p - t))),
    "smooth l1, beta 2": (functools.partial(losses.masked_smooth_l1, beta=2.0), functools.partial(smooth_l1, beta=2.0)),
    "smooth l1, beta 0.5": (
        functools.partial(losses.masked_smooth_l1, beta=0.5),
        functools.partial(smooth_l1, beta=0.5),
    ),
}


DISTINCT = list(REGRESSIONS)[:-1]  # the last is another beta


@pytest.fixture(params=REGRESSIONS)
def regression(request):
    return REGRESSIONS[request.param]


def test_bfloat16_is_computed_in_float32():
    regressions = [(loss, (*patches(), MASK), (0, 1)) for loss, *_ in REGRESSIONS.values()]
    checks.computed_in_float32(*regressions, (losses.masked_cross_entropy, (patches()[0], TOKENS[:4], MASK), (0,)))


def test_regression_is_the_mean_over_masked_tokens(regression):
    loss, of_token = regression
    checks.equals_reference(
        loss, lambda p, t, mask: masked_mean(of_token, p, t, mask=mask), *patches(), MASK, argnums=(0, 1)
    )


# The pixels are the example of a mean over masked tokens: at every number of devices.
@pytest.mark.parametrize("name, devices", [(n, (1, 2, 4, 8) if n == "pixels" else (2, 8)) for n in DISTINCT])
def test_regression_over_devices_is_that_of_the_whole_batch(name, devices):
    mask = np.tile(MASK, (2, 1))
    checks.same_on_devices(REGRESSIONS[name][0], *patches(batch=8), mask, argnums=(0, 1), devices=devices)


@pytest.mark.parametrize("name", DISTINCT)
def test_regression_is_finite(name):
    # 1e15: the sum of squares of 1e18 over a batch is at the end of float32.
    scales = (1e-30, 1e-8, 1.0, 1e15)
    checks.finite_everywhere(REGRESSIONS[name][0], *patches(), MASK, scaled=(0, 1), scales=scales)


def test_regression_does_not_see_visible_tokens(regression):
    loss, _ = regression
    prediction, target = patches()
    elsewhere = np.where(MASK[..., None], prediction, np.float32(1e3))
    value, (gradient, _) = checks.value_and_grad(loss, prediction, target, MASK, argnums=(0, 1))
    assert checks.value_and_grad(loss, elsewhere, target, MASK, argnums=(0, 1))[0] == value
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), MASK)


def test_regression_without_masked_tokens_is_zero(regression):
    loss, _ = regression
    value, gradients = checks.value_and_grad(loss, *patches(), np.zeros((4, 4), bool), argnums=(0, 1))
    assert value == 0 and not np.any(gradients)


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (2, 3, 5), (2, 3)), ((2, 3), (2, 3), (2, 3)), ((2, 3, 4),) * 2 + ((3, 2),)]
)
@pytest.mark.usefixtures("unchecked")
def test_regression_refuses_other_shapes(regression, shapes):
    loss, _ = regression
    prediction, target, mask = shapes
    with pytest.raises(ValueError, match="of one shape, mask"):
        loss(np.ones(prediction), np.ones(target), np.ones(mask, bool))


def test_masked_pixels_at_known_errors():
    # 1, 2, 3 normalized: -1, 0, 1 (unbiased variance 1), whatever the brightness and the contrast.
    target = np.array([[[1.0, 2.0, 3.0], [10.0, 30.0, 50.0]]])
    prediction = np.array([[[-1.0, 0.0, 1.0], [-1.0, 0.0, 4.0]]])
    value = losses.masked_pixels(prediction, target, np.array([[True, True]]))
    np.testing.assert_allclose(value, (0 + 3.0**2 / 3) / 2, rtol=1e-5)  # eps = 1e-6 moves it by 1e-6


def test_masked_pixels_of_flat_patches_are_zeros():
    target = np.full((1, 2, 4), 7.0)
    np.testing.assert_array_equal(losses.masked_pixels(np.zeros((1, 2, 4)), target, np.ones((1, 2), bool)), 0.0)


def test_masked_pixels_refuses_to_normalize_a_single_number():
    one = np.ones((1, 2, 1))
    with pytest.raises(ValueError, match="normalize=False"):
        losses.masked_pixels(one, one, np.ones((1, 2), bool))


def test_masked_smooth_l1_far_off_is_finite():
    value = losses.masked_smooth_l1(np.full((1, 1, 1), 1e30), np.zeros((1, 1, 1)), np.ones((1, 1), bool), beta=1.0)
    np.testing.assert_allclose(value, 1e30, rtol=1e-6)


TOKENS = np.random.default_rng(1).integers(0, 5, (8, 4)).astype(np.int32)


def cross_entropy_of_token(logits, token):
    return np.log(np.sum(np.exp(logits))) - logits[token]


def test_masked_cross_entropy_is_the_mean_over_masked_tokens():
    tokens = TOKENS[:4]
    checks.equals_reference(
        losses.masked_cross_entropy,
        lambda logits, tokens, mask: masked_mean(cross_entropy_of_token, logits, tokens, mask=mask),
        3.0 * patches()[0],
        tokens,
        MASK,
        argnums=(0,),
    )


def test_masked_cross_entropy_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(
        losses.masked_cross_entropy, patches(batch=8)[0], TOKENS, np.tile(MASK, (2, 1)), argnums=(0,)
    )


def test_masked_cross_entropy_is_finite():
    checks.finite_everywhere(losses.masked_cross_entropy, patches()[0], TOKENS[:4], MASK, scaled=(0,))


def test_masked_cross_entropy_by_chance():
    ones = np.ones((4, 4, 5), np.float32)
    value, _ = checks.value_and_grad(losses.masked_cross_entropy, ones, TOKENS[:4], MASK, argnums=(0,))
    np.testing.assert_allclose(value, np.log(5), rtol=1e-6)


@pytest.mark.parametrize("tokens, mask", [((2, 4), (2, 3)), ((2, 3), (3, 2))])
@pytest.mark.usefixtures("unchecked")
def test_masked_cross_entropy_refuses_other_shapes(tokens, mask):
    with pytest.raises(ValueError, match=r"tokens and mask \[batch, tokens\]"):
        losses.masked_cross_entropy(np.ones((2, 3, 5)), np.ones(tokens, int), np.ones(mask, bool))
