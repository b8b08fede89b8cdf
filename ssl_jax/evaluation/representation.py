"""How embeddings fill their space: collapse and spread, without labels. Pure functions, usable inside jit."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, Float

from ssl_jax.losses._common import normalize

# Shares of the possible at which a look is asked for; a collapse is far below, a healthy run far above.
LEAST_SPREAD, LEAST_RANK = 0.25, 0.1
# Of the chance level, where it is more than 1: a loss this near to it has not left it, or has come back.
CHANCE_MARGIN = 0.002


def collapse(metrics: Mapping[str, float], chance_level: float | None) -> dict[str, str]:
    """What the logged metrics of a step say of a collapse: {metric: a sentence}, {} for a healthy run.

    Not for the first steps, in which every network is near chance.
    """
    found = {}
    if metrics.get("embedding_std", math.inf) < LEAST_SPREAD / math.sqrt(metrics.get("embedding_dim", math.inf)):
        found["embedding_std"] = (
            "The embeddings have collapsed to nearly one point: lower config.optimizer.lr or strengthen the "
            "augmentations."
        )
    if metrics.get("rankme", math.inf) < LEAST_RANK * metrics.get("rank_limit", 0.0):
        found["rankme"] = "Few dimensions are in use: the embeddings have partly collapsed."
    margin = CHANCE_MARGIN * max(1.0, abs(chance_level or 0.0))
    if chance_level is not None and abs(metrics.get("loss", math.inf) - chance_level) < margin:
        found["loss"] = (
            f"The loss is at {chance_level:.4g}, that of equal embeddings: nothing is learnt. Lower "
            "config.optimizer.lr, or lengthen config.optimizer.warmup_steps."
        )
    if metrics.get("colored_share", 1.0) == 0.0:
        found["colored_share"] = (
            "No image has a color, and colors are what is to be predicted: train on color images, with "
            "config.data.channels=3."
        )
    return found


def embedding_std(z: Float[Array, "batch dim"]) -> Float[Array, ""]:
    """Standard deviation over the batch of each dimension of the normalized embedding, averaged over dimensions.

    Directions spread evenly give 1 / sqrt(dim), complete collapse 0.

    Source: Chen and He 2020, arXiv:2011.10566, section 4.1. Unbiased (over batch - 1), as torch.std is.
    """
    return jnp.mean(jnp.std(normalize(z), axis=0, ddof=1))


def rankme(z: Float[Array, "batch dim"], *, eps: float = 1e-7) -> Float[Array, ""]:
    """Effective rank: the exponential of the entropy of the normalized singular values of z, not centered.

    Between 1 (all rows on one line, or zero) and min(batch, dim). Compare it between equal shapes, the batch some
    times the dimension.

    Source: Garrido et al. 2022, arXiv:2210.02885, eq. 1-2.
    """
    singular = jnp.linalg.svd(z.astype(jnp.float32), compute_uv=False)
    p = singular / jnp.maximum(jnp.sum(singular), jnp.finfo(jnp.float32).tiny) + eps
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


def alignment(z1: Float[Array, "batch dim"], z2: Float[Array, "batch dim"], *, alpha: float = 2.0) -> Float[Array, ""]:
    """Mean distance of positive pairs to the power alpha, on the unit sphere: 0 if identical, 4 if opposite.

    Source: Wang and Isola 2020, arXiv:2005.10242, section 4.1.
    """
    return jnp.mean(jnp.linalg.norm(normalize(z1) - normalize(z2), axis=-1) ** alpha)


def uniformity(z: Float[Array, "batch dim"], *, t: float = 2.0) -> Float[Array, ""]:
    """log of the mean, over pairs of different rows, of exp(-t * squared distance) on the unit sphere.

    0 if all rows are one direction; about -2t = -4 for random directions in many dimensions. Needs two rows, and
    memory for [batch, batch].

    Source: Wang and Isola 2020, arXiv:2005.10242, section 4.1.
    """
    z = normalize(z)
    squared_distances = 2.0 - 2.0 * jnp.matmul(z, z.T, precision="highest")
    n = len(z)
    others = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, -t * squared_distances)
    return logsumexp(others) - jnp.log(n * (n - 1.0))
