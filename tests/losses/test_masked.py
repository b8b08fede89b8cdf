import functools

import jax
import jax.numpy as jnp
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


REGRESSIONS = {
    "normalized pixels": (losses.masked_pixels, squared_error_of_normalized),
    "pixels": (
        functools.partial(losses.masked_pixels, normalize=False),
        lambda p, t: np.mean((p - t) ** 2),
    ),
    "l1": (losses.masked_l1, lambda p, t: np.mean(np.abs(p - t))),
    "smooth l1, beta 2": (functools.partial(losses.masked_smooth_l1, beta=2.0), functools.partial(smooth_l1, beta=2.0)),
    "smooth l1, beta 0.5": (
        functools.partial(losses.masked_smooth_l1, beta=0.5),
        functools.partial(smooth_l1, beta=0.5),
    ),
}


@pytest.fixture(params=REGRESSIONS)
def regression(request):
    return REGRESSIONS[request.param]


def test_regression_is_the_mean_over_masked_tokens(regression):
    loss, of_token = regression
    checks.equals_reference(
        lambda p, t: loss(p, t, jnp.asarray(MASK)), functools.partial(masked_mean, of_token, mask=MASK), *patches()
    )


def test_regression_over_devices_is_that_of_the_whole_batch(regression):
    loss, _ = regression
    mask = np.tile(MASK, (2, 1))
    checks.same_on_devices(loss, *patches(batch=8), mask, argnums=(0, 1))


def test_regression_is_finite(regression):
    loss, _ = regression
    # 1e15: the sum of squares of 1e18 over a batch is at the end of float32.
    checks.finite_everywhere(lambda p, t: loss(p, t, jnp.asarray(MASK)), *patches(), scales=(1e-30, 1e-8, 1.0, 1e15))


def test_regression_does_not_see_visible_tokens(regression):
    loss, _ = regression
    prediction, target = patches()
    elsewhere = np.where(MASK[..., None], prediction, 1e3)
    arguments = jnp.asarray(target), jnp.asarray(MASK)
    assert loss(jnp.asarray(elsewhere), *arguments) == loss(jnp.asarray(prediction), *arguments)
    gradient = jax.grad(loss)(jnp.asarray(prediction), *arguments)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), MASK)


def test_regression_without_masked_tokens_is_zero(regression):
    loss, _ = regression
    value, gradient = jax.value_and_grad(loss)(*map(jnp.asarray, patches()), jnp.zeros((4, 4), bool))
    assert value == 0 and not np.any(gradient)


@pytest.mark.parametrize(
    "shapes", [((2, 3, 4), (2, 3, 5), (2, 3)), ((2, 3), (2, 3), (2, 3)), ((2, 3, 4),) * 2 + ((3, 2),)]
)
@pytest.mark.usefixtures("unchecked")
def test_regression_refuses_other_shapes(regression, shapes):
    loss, _ = regression
    prediction, target, mask = shapes
    with pytest.raises(ValueError, match="of one shape, mask"):
        loss(jnp.ones(prediction), jnp.ones(target), jnp.ones(mask, bool))


def test_masked_pixels_at_known_errors():
    # 1, 2, 3 normalized: -1, 0, 1 (unbiased variance 1), whatever the brightness and the contrast.
    target = jnp.array([[[1.0, 2.0, 3.0], [10.0, 30.0, 50.0]]])
    prediction = jnp.array([[[-1.0, 0.0, 1.0], [-1.0, 0.0, 4.0]]])
    value = losses.masked_pixels(prediction, target, jnp.array([[True, True]]))
    np.testing.assert_allclose(value, (0 + 3.0**2 / 3) / 2, rtol=1e-5)  # eps = 1e-6 moves it by 1e-6


def test_masked_pixels_of_flat_patches_are_zeros():
    target = jnp.full((1, 2, 4), 7.0)
    np.testing.assert_array_equal(losses.masked_pixels(jnp.zeros((1, 2, 4)), target, jnp.ones((1, 2), bool)), 0.0)


def test_masked_pixels_refuses_to_normalize_a_single_number():
    one = jnp.ones((1, 2, 1))
    with pytest.raises(ValueError, match="normalize=False"):
        losses.masked_pixels(one, one, jnp.ones((1, 2), bool))


def test_masked_smooth_l1_far_off_is_finite():
    value = losses.masked_smooth_l1(jnp.full((1, 1, 1), 1e30), jnp.zeros((1, 1, 1)), jnp.ones((1, 1), bool), beta=1.0)
    np.testing.assert_allclose(value, 1e30, rtol=1e-6)


TOKENS = np.random.default_rng(1).integers(0, 5, (8, 4)).astype(np.int32)


def cross_entropy_of_token(logits, token):
    return np.log(np.sum(np.exp(logits))) - logits[token]


def test_masked_cross_entropy_is_the_mean_over_masked_tokens():
    tokens = TOKENS[:4]
    checks.equals_reference(
        lambda logits: losses.masked_cross_entropy(logits, jnp.asarray(tokens), jnp.asarray(MASK)),
        lambda logits: masked_mean(cross_entropy_of_token, logits, tokens, mask=MASK),
        3.0 * patches()[0],
    )


def test_masked_cross_entropy_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(
        losses.masked_cross_entropy, patches(batch=8)[0], TOKENS, np.tile(MASK, (2, 1)), argnums=(0,)
    )


def test_masked_cross_entropy_is_finite():
    checks.finite_everywhere(
        lambda logits: losses.masked_cross_entropy(logits, jnp.asarray(TOKENS[:4]), jnp.asarray(MASK)), patches()[0]
    )


def test_masked_cross_entropy_by_chance():
    value = losses.masked_cross_entropy(jnp.ones((4, 4, 5)), jnp.asarray(TOKENS[:4]), jnp.asarray(MASK))
    np.testing.assert_allclose(value, np.log(5), rtol=1e-6)


@pytest.mark.parametrize("tokens, mask", [((2, 4), (2, 3)), ((2, 3), (3, 2))])
@pytest.mark.usefixtures("unchecked")
def test_masked_cross_entropy_refuses_other_shapes(tokens, mask):
    with pytest.raises(ValueError, match=r"tokens and mask \[batch, tokens\]"):
        losses.masked_cross_entropy(jnp.ones((2, 3, 5)), jnp.ones(tokens, int), jnp.ones(mask, bool))
