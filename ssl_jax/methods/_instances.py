"""Which image of all is this? Losses of embeddings with a bank of one row for each image (InstDisc, PIRL, CMC)."""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses

# log Z before the first batch has given it: as if nothing had been added up yet.
NO_LOG_Z = -math.inf


def first_log_z() -> Float[Array, ""]:
    """What a state's log Z is before the first step."""
    return jnp.full((), NO_LOG_Z)


def loss(
    z: Float[Array, "batch dim"],
    bank: Float[Array, "num_images dim"],
    index: Int[Array, "batch"],
    rng: Key[Array, ""],
    log_z: Float[Array, ""],
    *,
    negatives: int,
    softmax: bool,
    temperature: float,
    axis_name: str | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of unit rows `z` of the images `index`, by their cosines with rows of the bank -> (loss, log Z).

    negatives: rows drawn for each image, uniformly with replacement, its own perhaps among them: the images' keys are
      `rng` with their index folded in. 0: all rows, by cross entropy.
    softmax: cross entropy over the own row and the negatives, instead of noise-contrastive estimation.
    log_z: the constant of the latter, estimated from the batch where it is `NO_LOG_Z`, else returned as it is.
    """
    if negatives == 0:
        scores = jnp.matmul(z, bank.T, precision="highest")
        return _cross_entropy(scores, index, temperature, axis_name), log_z
    num_images = len(bank)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, index)
    drawn = jax.vmap(lambda key: jax.random.randint(key, (negatives,), 0, num_images))(keys)
    rows = bank[jnp.concatenate([index[:, None], drawn], axis=1)]  # the own one first
    scores = jnp.einsum("bd,bkd->bk", z, rows, precision="highest")
    if softmax:
        return _cross_entropy(scores, jnp.zeros_like(index), temperature, axis_name), log_z
    scores /= temperature
    options = dict(num_images=num_images, axis_name=axis_name)
    estimate = losses.nce_log_z(scores[:, 0], scores[:, 1:], **options)
    log_z = lax.stop_gradient(jnp.where(jnp.isneginf(log_z), estimate, log_z))
    return losses.nce(scores[:, 0], scores[:, 1:], log_z, **options), log_z


def _cross_entropy(scores, label, temperature, axis_name):
    return losses.pseudo_label_cross_entropy(scores[None], label, temperature=temperature, axis_name=axis_name)


def chance_level(num_images: int, negatives: int, softmax: bool) -> float:
    """`loss` where all scores are equal; of noise-contrastive estimation where Z, too, is of such scores."""
    if negatives == 0:
        return math.log(num_images)
    if softmax:
        return math.log(1 + negatives)
    return math.log1p(negatives) + negatives * math.log1p(1 / negatives)


def check_negatives(negatives: int) -> None:
    """Raises: ValueError for fewer than none."""
    if negatives < 0:
        raise ValueError(f"negatives must be at least 0, which compares with the whole bank, got {negatives}")
