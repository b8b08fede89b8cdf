"""Metrics of how features fill their space, without labels. Pure functions; all but `summary` usable inside jit."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, Float

from ssl_jax.health.neighbors import nearest_neighbor_entropy, two_nn
from ssl_jax.health.spectrum import spectral
from ssl_jax.ops import check_finite, normalize

# `summary` compares at most this many images with each other: its time and memory grow with the square.
COMPARED = 4096


def summary(h: Float[np.ndarray, "images dim"]) -> dict[str, float]:
    """The metrics of one set of features, by name.

    They are all metrics of this file that need no second view, those of `spectrum.spectral`,
    `nearest_neighbor_entropy` and `two_nn`. Metrics that compare pairs of images use at most `COMPARED` images. These
    are evenly spaced in the set, so that no class is cut off if the set is ordered by class. A metric is left out if
    the features are too few or too similar for it. See docs/metrics.md.

    Raises: ValueError for fewer than three images, or features that are not finite.
    """
    if len(h) < 3:
        raise ValueError(f"the metrics need at least 3 images, because they compare each with two others; got {len(h)}")
    check_finite("summary", h)
    compared = h[np.linspace(0, len(h) - 1, min(len(h), COMPARED)).astype(int)]
    values = _of_all(jnp.asarray(h)) | _of_pairs(jnp.asarray(compared))
    return {name: float(value) for name, value in values.items() if jnp.isfinite(value)}


@jax.jit
def _of_all(h: Float[Array, "images dim"]) -> dict[str, Float[Array, ""]]:
    return spectral(h) | {
        "embedding_std": embedding_std(h),
        "feature_deviation": feature_deviation(h),
        "self_cluster": self_cluster(h),
    }


@jax.jit
def _of_pairs(h: Float[Array, "images dim"]) -> dict[str, Float[Array, ""]]:
    return {
        "uniformity": uniformity(h),
        "nearest_neighbor_entropy": nearest_neighbor_entropy(h),
        "two_nn": two_nn(h),
    }


def embedding_std(z: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Standard deviation over the batch of each dimension of the normalized embedding, averaged over dimensions.

    Directions spread evenly give 1 / sqrt(dim), complete collapse 0.

    Source: Chen and He 2020, arXiv:2011.10566, section 4.1. Unbiased (over batch - 1), as torch.std is.
    """
    return jnp.mean(jnp.std(normalize(z), axis=0, ddof=1))


def feature_deviation(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Standard deviation over the images of each dimension of h, not normalized, averaged over dimensions.

    0 if all images have the same features. It is in the features' own scale: follow it over a training, but do not
    compare it between models. Unbiased, as `embedding_std`.
    """
    return jnp.mean(jnp.std(h.astype(jnp.float32), axis=0, ddof=1))


def self_cluster(h: Float[Array, "images dim"]) -> Float[Array, ""]:
    """Excess of the mean squared cosine between images over that of random directions, 1 / dim, scaled to be at most 1.

    1 if all rows are on one line through the origin, 0 on average for random directions. Below 0 for directions more
    evenly spread than random ones, at least -1 / (max(images, dim) - 1). Needs two rows and two dimensions.

    Source: Tsitsulin et al. 2023, arXiv:2305.16562, section 3: over all pairs (i, j), the sum of squared cosines is
      compared with its expectation n + n (n - 1) / dim.
    """
    n, dim = h.shape
    z = normalize(h)
    # The smaller of the two Gram matrices: their norms are equal.
    gram = jnp.matmul(z.T, z, precision="highest") if dim <= n else jnp.matmul(z, z.T, precision="highest")
    return (jnp.sum(gram**2) / n - 1.0 - (n - 1.0) / dim) / ((n - 1.0) * (1.0 - 1.0 / dim))


def alignment(z1: Float[Array, "batch dim"], z2: Float[Array, "batch dim"], *, alpha: float = 2.0) -> Float[Array, ""]:
    """Mean distance of positive pairs to the power alpha, on the unit sphere: 0 if identical, 4 if opposite.

    Source: Wang and Isola 2020, arXiv:2005.10242, section 4.1.
    """
    return jnp.mean(jnp.linalg.norm(normalize(z1) - normalize(z2), axis=-1) ** alpha)


def uniformity(z: Float[Array, "batch dim"], *, t: float = 2.0) -> Float[Array, ""]:
    """log of the mean, over pairs of different rows, of exp(-t * squared distance) on the unit sphere.

    0 if all rows have one direction; about -2t = -4 for random directions in many dimensions. Needs two rows, and
    memory for [batch, batch].

    Source: Wang and Isola 2020, arXiv:2005.10242, section 4.1.
    """
    z = normalize(z)
    squared_distances = 2.0 - 2.0 * jnp.matmul(z, z.T, precision="highest")
    n = len(z)
    others = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, -t * squared_distances)
    return logsumexp(others) - jnp.log(n * (n - 1.0))
