"""How the features' variance spreads over their directions, without labels. Pure functions, usable inside jit.

All but `lidar` are functions of singular values, either of the features as they are ("not centered") or of the features
minus their mean. In the second case the squared singular values are, up to a factor, the eigenvalues of the covariance.
Scaling the features changes none of these metrics.
"""

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float, Inexact

from ssl_jax.ops import center

# The eigenvalues that alpha-ReQ fits, numbered by size from 1. The first few carry the mean and the classes.
FIRST_FITTED, LAST_FITTED = 5, 99


def spectral(h: Float[Array, "images dim"]) -> dict[str, Float[Array, ""]]:
    """The metrics of the functions below (not `lidar`), by name, at the cost of two SVDs.

    `top_share` becomes "top8_share" and "top64_share". For features that are centered already, "stable_rank" and
    "nesum" are the same.
    """
    plain, centered = _singular_values(h), _singular_values(center(h, None))
    alpha, r2 = _power_law(centered)
    return {
        "rankme": _effective_rank(plain, 1e-7),
        "stable_rank": jnp.sum(plain**2),
        "pseudo_condition_number": plain[-1],
        "nesum": jnp.sum(centered**2),
        "participation_ratio": _participation(centered),
        "top8_share": _top_share(centered, 8),
        "top64_share": _top_share(centered, 64),
        "alpha_req": alpha,
        "alpha_req_r2": r2,
    }


def rankme(h: Float[Array, "images dim"], *, eps: float = 1e-7) -> Float[Array, ""]:
    """Effective rank: the exponential of the entropy of the normalized singular values of h, not centered.

    Between 1 (all rows on one line, or zero) and min(images, dim). Compare it between equal shapes, with a few times
    more images than dimensions.

    Source: Garrido et al. 2022, arXiv:2210.02885, eq. 1-2.
    """
    return _effective_rank(_singular_values(h), eps)


def stable_rank(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Sum of the squared singular values over the largest of them, not centered.

    Between 1 (all rows on one line) and min(images, dim); 0 for zeros. Unlike the rank, it depends little on small
    singular values. A mean far from the origin brings it near 1.

    Source: Tsitsulin et al. 2023, arXiv:2305.16562, section 3.
    """
    return jnp.sum(_singular_values(h) ** 2)


def pseudo_condition_number(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """The smallest singular value over the largest, not centered: 1 if all are equal, 0 if h lacks full rank.

    Source: Tsitsulin et al. 2023, arXiv:2305.16562, section 3.
    """
    return _singular_values(h)[-1]


def nesum(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Normalized eigenvalue sum: the sum of the covariance's eigenvalues over the largest of them.

    dim if whitened, 1 if collapsed to a line. It is the `stable_rank` of the centered features.

    Source: He and Ozay 2022, "Exploring the gap between collapsed and whitened features in self-supervised learning",
      ICML 2022.
    """
    return stable_rank(center(h, None))


def participation_ratio(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Squared sum of the covariance's eigenvalues over the sum of their squares: k if k are equal and all others 0.

    Between 1 (collapsed to a line) and min(images - 1, dim), never below `nesum`; NaN if all rows are equal.

    Source: Gao et al. 2017, bioRxiv 214262, "A theory of multineuronal dimensionality, dynamics and measurement".
    """
    return _participation(_singular_values(center(h, None)))


def top_share(h: Float[Array, "images dim"], *, k: int) -> Float[Array, ""]:
    """The share of the variance in the k directions with the most variance.

    Between k / min(images - 1, dim) (evenly spread) and 1; NaN if all rows are equal.
    """
    return _top_share(_singular_values(center(h, None)), k)


def alpha_req(h: Float[Array, "images dim"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Exponent alpha of the power law that the covariance's eigenvalues follow: the j-th largest is near c * j^-alpha.

    Fitted to logarithms by least squares with weights 1 / j, over `FIRST_FITTED` <= j <= `LAST_FITTED`. Eigenvalues
    below float32's rounding are left out.

    Returns: (alpha, R^2 of the fit with its weights, in [0, 1]). alpha is 0 for a flat spectrum. The authors find the
      best features near 1; far above 1, features have collapsed to few directions. If R^2 is not near 1, there is no
      power law; for example, the spectrum breaks off. Both are NaN if fewer than two eigenvalues can be fitted.
    Source: Agrawal et al. 2022, "alpha-ReQ: Assessing representation quality in self-supervised learning by measuring
      eigenspectrum decay", NeurIPS 2022; the weights as in the code of Stringer et al. 2019, Nature 571.
    """
    return _power_law(_singular_values(center(h, None)))


def lidar(views: Float[Array, "images views dim"], *, delta: float = 1e-4, eps: float = 1e-8) -> Float[Array, ""]:
    """Effective rank of the differences between images, relative to the changes that augmentations make.

    B is the covariance of the images' means over their views. W is the covariance of the views around these means, plus
    delta * I. The result is the exponential of the entropy of the normalized eigenvalues of W^-1/2 B W^-1/2 (linear
    discriminant analysis with each image as a class).

    Args:
      views: embeddings of several augmented views of each image, as in training. The authors take 1000 images with 50
        views, or 10,000 with 10 if dim is large. There must be more images than dim.
      delta: > 0, in units of squared features. To compare results, keep the features' scale or normalize them.
      eps: added to each normalized eigenvalue.

    Returns: float32 scalar between 1 and min(images - 1, dim).
    Raises: ValueError for fewer than two images or two views.
    Source: Thilak et al. 2023, arXiv:2312.04000, section 4.
    """
    images, num_views, dim = views.shape
    if images < 2 or num_views < 2:
        raise ValueError(f"views must be of at least two images and two views of each, got {views.shape}")
    views = views.astype(jnp.float32)
    means = jnp.mean(views, axis=1)
    between = center(means, None)  # B's root up to a factor, which normalizing the eigenvalues removes
    within = (views - means[:, None]).reshape(-1, dim) / jnp.sqrt(images * (num_views - 1.0))
    # root^T root = W. In float32, W itself would lose everything below 1e-7 of its largest eigenvalue, delta included.
    # Then it would have no root.
    root = jnp.linalg.qr(jnp.concatenate([within, jnp.sqrt(delta) * jnp.eye(dim)]), mode="r")
    whitened = solve_triangular(root, between.T, trans="T")
    return _effective_rank(_singular_values(whitened) ** 2, eps)


def _singular_values(h: Inexact[Array, "rows dim"]) -> Float[Array, "rank"]:
    """Singular values relative to the largest, descending; zeros if h is zero."""
    singular = jnp.linalg.svd(h.astype(jnp.float32), compute_uv=False)
    return singular / jnp.maximum(singular[0], jnp.finfo(jnp.float32).tiny)


def _effective_rank(values: Float[Array, "rank"], eps: float) -> Float[Array, ""]:
    p = values / jnp.maximum(jnp.sum(values), jnp.finfo(jnp.float32).tiny) + eps
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


def _participation(singular: Float[Array, "rank"]) -> Float[Array, ""]:
    return jnp.sum(singular**2) ** 2 / jnp.sum(singular**4)


def _top_share(singular: Float[Array, "rank"], k: int) -> Float[Array, ""]:
    return jnp.sum(singular[:k] ** 2) / jnp.sum(singular**2)


def _power_law(singular: Float[Array, "rank"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    j = jnp.arange(1, len(singular) + 1)
    # As in numpy's matrix_rank, but with the smaller side. Singular values below this are rounding errors.
    rounding = len(singular) * jnp.finfo(jnp.float32).eps
    fitted = (j >= FIRST_FITTED) & (j <= LAST_FITTED) & (singular > rounding)
    weights = jnp.where(fitted, 1.0 / j, 0.0)
    weights /= jnp.sum(weights)
    x, y = jnp.log(j), 2.0 * jnp.log(jnp.where(fitted, singular, 1.0))
    x, y = (values - jnp.sum(weights * values) for values in (x, y))
    xx, xy, yy = (jnp.sum(weights * products) for products in (x * x, x * y, y * y))
    return -xy / xx, xy**2 / (xx * yy)
