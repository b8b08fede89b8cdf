"""Losses that ask which image of the data set this is, by a bank with a row for each image: InstDisc, PIRL, CMC."""

# pyright: reportUnknownMemberType=false

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.methods.toolkit import banks
from ssl_jax.methods.toolkit.banks import Bank
from ssl_jax.ops import shards

# log Z until the first batch gives it. It is the log of 0: nothing has been added up yet.
NO_LOG_Z = -math.inf


def first_log_z() -> Float[Array, ""]:
    """The log Z of a state before the first step."""
    return jnp.full((), NO_LOG_Z)


def loss(
    z: Float[Array, "batch dim"],
    bank: Bank,
    index: Int[Array, " batch"],
    rng: Key[Array, ""],
    log_z: Float[Array, ""],
    *,
    num_images: int,
    negatives: int,
    softmax: bool,
    temperature: float,
    axis_name: str | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The loss of unit rows `z` of the images `index`, by their cosines with rows of the bank -> (loss, log Z).

    bank: [rows, dim].
    num_images: rows of the bank that an image has, the first ones.
    negatives: rows that are drawn for each image, uniformly with replacement. Its own row may be among them. An image's
      key is `rng` with its index folded in. 0: all rows, by cross entropy.
    softmax: cross entropy over the image's own row and the negatives, in place of noise-contrastive estimation.
    log_z: the constant of noise-contrastive estimation. Where it is `NO_LOG_Z`, it is estimated from the batch; else it
      is returned as it is.
    """
    if negatives == 0:
        return _over_all(z, bank, index, num_images, temperature, axis_name), log_z

    def own_and_drawn(index: Int[Array, " images"]) -> Int[Array, "images count"]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(rng, index)
        draw = functools.partial(jax.random.randint, shape=(negatives,), minval=0, maxval=num_images)
        return jnp.concatenate([index[:, None], jax.vmap(draw)(keys)], axis=1)

    if isinstance(bank, shards.Shard):
        scores = banks.scores(z, bank, own_and_drawn(ops.all_rows(index, axis_name)))
    else:
        scores = jnp.einsum("bd,bkd->bk", z, bank[own_and_drawn(index)], precision="highest")
    if softmax:
        return _cross_entropy(scores, jnp.zeros_like(index), temperature, axis_name), log_z
    scores /= temperature
    own, others = scores[:, 0], scores[:, 1:]
    estimate = losses.nce_log_z(own, others, num_images=num_images, axis_name=axis_name)
    log_z = lax.stop_gradient(jnp.where(jnp.isneginf(log_z), estimate, log_z))
    return losses.nce(own, others, log_z, num_images=num_images, axis_name=axis_name), log_z


def _over_all(
    z: Float[Array, "batch dim"],
    bank: Bank,
    index: Int[Array, " batch"],
    num_images: int,
    temperature: float,
    axis_name: str | None,
) -> Float[Array, ""]:
    """Cross entropy over the rows of all images."""
    if not isinstance(bank, shards.Shard):
        scores = jnp.matmul(z, bank[:num_images].T, precision="highest")
        return _cross_entropy(scores, index, temperature, axis_name)
    # Each device has the scores of all devices' images with its own rows of the bank.
    everyone = ops.all_rows(z, axis_name)
    scores = jnp.matmul(everyone, lax.stop_gradient(bank.value).T, precision="highest") / temperature
    images = banks.first_own(bank) + jnp.arange(scores.shape[1]) < num_images
    scores = jnp.where(images, scores, -jnp.inf)
    largest = lax.pmax(lax.stop_gradient(jnp.max(scores, axis=1)), bank.route.axis_name)
    place = banks.places(bank, ops.all_rows(index, axis_name))
    own = jnp.take_along_axis(scores - largest[:, None], place[:, None], axis=1, mode="fill", fill_value=0.0)[:, 0]
    total = jnp.sum(jnp.exp(scores - largest[:, None]), axis=1)
    own, total = (shards.sum_and_shard(part, 0, bank.route) for part in (own, total))
    return jnp.mean(jnp.log(total) - own)


def _cross_entropy(
    scores: Float[Array, "batch rows"], label: Int[Array, " batch"], temperature: float, axis_name: str | None
) -> Float[Array, ""]:
    return losses.pseudo_label_cross_entropy(scores[None], label, temperature=temperature, axis_name=axis_name)


def chance_level(num_images: int, negatives: int, softmax: bool) -> float:
    """`loss` where all scores are equal. For noise-contrastive estimation Z, too, is that of equal scores."""
    if negatives == 0:
        return math.log(num_images)
    if softmax:
        return math.log(1 + negatives)
    return math.log1p(negatives) + negatives * math.log1p(1 / negatives)
