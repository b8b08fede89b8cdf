"""Masked image modeling: the hidden tokens of an image are predicted, and only they count in the loss."""

import jax.numpy as jnp
from jax import lax, nn
from jaxtyping import Array, Bool, Float, Int

from ssl_jax import ops


def masked_pixels(
    prediction: Float[Array, "batch tokens pixels"],
    target: Float[Array, "batch tokens pixels"],
    mask: Bool[Array, "batch tokens"],
    *,
    normalize: bool = True,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """MAE: mean squared error of the pixels of masked patches.

    The mean of (prediction - t)^2 over all masked patches of the global batch and over a patch's pixels. With
    `normalize`, t = (target - mean) / sqrt(variance + 1e-6), with the patch's own mean and unbiased variance. Otherwise
    t = target.

    Args:
      prediction, target: [batch, tokens, pixels], patches of pixels = height * width * channels numbers.
      mask: [batch, tokens], True where the patch was hidden. The loss is 0 if the global batch has no hidden patch.
      normalize: predict each patch without its brightness and contrast.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree, or a patch of a single number is to be normalized.
    Source: He et al. 2021, arXiv:2111.06377, section 3; variance and eps as in the authors' code.
    """
    prediction, target = _check(prediction, target, mask)
    if normalize:
        if target.shape[-1] < 2:
            raise ValueError("a patch of a single number has no variance; pass normalize=False")
        target = target - jnp.mean(target, axis=-1, keepdims=True)
        target = target * lax.rsqrt(jnp.var(target, axis=-1, keepdims=True, ddof=1) + 1e-6)
    return ops.mean_where(jnp.mean((prediction - target) ** 2, axis=-1), mask, axis_name)


def masked_l1(
    prediction: Float[Array, "batch tokens dim"],
    target: Float[Array, "batch tokens dim"],
    mask: Bool[Array, "batch tokens"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """SimMIM: the mean of |prediction - target| over all masked tokens of the global batch and their entries.

    Args, Returns: as for `masked_pixels`.
    Raises: ValueError if the shapes do not agree.
    Source: Xie et al. 2021, arXiv:2111.09886, eq. 1. The authors add 1e-5 to the number of masked pixels. It is left
      out here, because float32 loses it.
    """
    prediction, target = _check(prediction, target, mask)
    return ops.mean_where(jnp.mean(jnp.abs(prediction - target), axis=-1), mask, axis_name)


def masked_smooth_l1(
    prediction: Float[Array, "batch tokens dim"],
    target: Float[Array, "batch tokens dim"],
    mask: Bool[Array, "batch tokens"],
    *,
    beta: float,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """data2vec and I-JEPA: squared error near the target, absolute error farther off.

    With d = |prediction - target|, the mean of d^2 / (2 beta) where d < beta, and of d - beta / 2 elsewhere, over all
    masked tokens of the global batch and their entries.

    Args:
      prediction, target: [batch, tokens, dim]. The gradient flows to both: where the target is a teacher's, the
        caller stops it.
      mask: [batch, tokens], True where the token is to be predicted. The loss is 0 if the global batch has no such
        token.
      beta: > 0. 2 in data2vec's command for images, 1 in I-JEPA's code.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Baevski et al. 2022, arXiv:2202.03555, section 3; Assran et al. 2023, arXiv:2301.08243. The second paper
      has a squared distance; its authors' code has this loss.
    """
    prediction, target = _check(prediction, target, mask)
    d = jnp.abs(prediction - target)
    near = jnp.minimum(d, beta)  # the square of a far d would overflow
    return ops.mean_where(jnp.mean(near * near / (2.0 * beta) + (d - near), axis=-1), mask, axis_name)


def masked_cosine(
    prediction: Float[Array, "batch tokens dim"],
    target: Float[Array, "batch tokens dim"],
    mask: Bool[Array, "batch tokens"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """EVA and MILAN: the mean of 1 - cos(prediction, target) over all masked tokens of the global batch.

    Args:
      prediction, target: [batch, tokens, dim], any scale. The gradient flows to both: where the target is a teacher's,
        the caller stops it.
      mask, axis_name: as for `masked_pixels`.

    Returns: float32 scalar in [0, 2]; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Fang et al. 2022, arXiv:2211.07636, whose code has -cos; Hou et al. 2022, arXiv:2208.06049, whose code has
      2 - 2 cos.
    """
    prediction, target = _check(prediction, target, mask)
    cosines = jnp.sum(ops.normalize(prediction) * ops.normalize(target), axis=-1)
    return ops.mean_where(1.0 - cosines, mask, axis_name)


def masked_cross_entropy(
    logits: Float[Array, "batch tokens classes"],
    tokens: Int[Array, "batch tokens"],
    mask: Bool[Array, "batch tokens"],
    *,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """BEiT: cross entropy of the tokenizer's tokens, averaged over the masked patches of the global batch.

    Args:
      logits: [batch, tokens, classes].
      tokens: [batch, tokens] in 0, ..., classes - 1.
      mask: [batch, tokens], True where the patch was hidden. The loss is 0 if the global batch has no hidden patch.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch. The chance level is
      log(classes).
    Raises: ValueError if the shapes do not agree.
    Source: Bao et al. 2021, arXiv:2106.08254, section 2.3.
    """
    if logits.ndim != 3 or not tokens.shape == mask.shape == logits.shape[:2]:
        raise ValueError(
            "logits must be [batch, tokens, classes], tokens and mask [batch, tokens], "
            f"got {logits.shape}, {tokens.shape}, {mask.shape}"
        )
    log_p = nn.log_softmax(logits.astype(jnp.float32))
    return ops.mean_where(-jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0], mask, axis_name)


def _check(
    prediction: Float[Array, "..."], target: Float[Array, "..."], mask: Bool[Array, "..."]
) -> tuple[Float[Array, "batch tokens dim"], Float[Array, "batch tokens dim"]]:
    """Checks the shapes and returns both in float32."""
    if prediction.ndim != 3 or prediction.shape != target.shape or mask.shape != prediction.shape[:2]:
        raise ValueError(
            "prediction and target must be [batch, tokens, dim] of one shape, mask [batch, tokens], "
            f"got {prediction.shape}, {target.shape}, {mask.shape}"
        )
    return prediction.astype(jnp.float32), target.astype(jnp.float32)
