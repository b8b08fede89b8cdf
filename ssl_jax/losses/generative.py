"""Losses of generative models: reconstructing, sampling, and telling real images from generated ones."""

import jax.numpy as jnp
from jax import nn
from jaxtyping import Array, Bool, Float, Shaped

from ssl_jax import ops


def squared_error(
    prediction: Float[Array, "batch ..."], target: Float[Array, "batch ..."], *, axis_name: str | None = None
) -> Float[Array, ""]:
    """The mean of (prediction - target)^2 over the batch and all entries: a denoising autoencoder's loss.

    Args:
      prediction, target: [batch, ...] of one shape. The gradient flows to both.
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Vincent et al. 2008, Extracting and composing robust features with denoising autoencoders, section 2.3.
    """
    prediction, target = _same(prediction, target)
    return jnp.mean((prediction - target) ** 2)


def vae(
    prediction: Float[Array, "batch ..."],
    target: Float[Array, "batch ..."],
    mean: Float[Array, "batch latent"],
    log_variance: Float[Array, "batch latent"],
    *,
    variance: float = 1.0,
    beta: float | Float[Array, ""] = 1.0,
    axis_name: str | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(reconstruction, KL divergence). Their sum is the negative evidence lower bound, up to a constant.

    For each image, the reconstruction is sum (prediction - target)^2 / (2 variance), a Gaussian's negative log
    likelihood. The divergence is beta * -1/2 sum_latent (1 + log_variance - mean^2 - exp(log_variance)), that of
    N(mean, exp(log_variance)) from N(0, 1). They are summed over pixels and latents, and averaged over the batch.

    Args:
      prediction, target: [batch, ...] of one shape.
      mean, log_variance: [batch, latent], the encoder's; log_variance is clipped to -10..10.
      variance: > 0, of the decoder's Gaussian. beta: >= 0, the weight of the divergence (arXiv:1606.05579).
      axis_name: not used, because the means need no other device's rows; all losses have it.

    Returns: two float32 scalars; their means over devices are those of the whole batch.
    Raises: ValueError if the shapes do not agree or variance is not above 0.
    Source: Kingma & Welling 2013, arXiv:1312.6114, eq. 10 and appendix B.
    """
    prediction, target = _same(prediction, target)
    if mean.ndim != 2 or mean.shape != log_variance.shape or len(mean) != len(target):
        raise ValueError(f"mean and log_variance must be [batch, latent], got {mean.shape}, {log_variance.shape}")
    if variance <= 0:
        raise ValueError(f"variance must be above 0, got {variance}")
    mean, log_variance = mean.astype(jnp.float32), jnp.clip(log_variance.astype(jnp.float32), -10.0, 10.0)
    reconstruction = jnp.sum((prediction - target) ** 2) / (2.0 * variance * len(target))
    divergence = -0.5 * jnp.sum(1.0 + log_variance - mean**2 - jnp.exp(log_variance)) / len(mean)
    return reconstruction, beta * divergence


def adversarial(logits: Shaped[Array, "batch ..."], real: bool, *, axis_name: str | None = None) -> Float[Array, ""]:
    """Binary cross entropy of the discriminator's logits against "all are real", or "all are generated".

    A discriminator minimizes adversarial(D(x), True) + adversarial(D(G(z)), False). A generator minimizes
    adversarial(D(G(z)), True), which does not saturate.

    Args:
      logits: [batch, ...], log(D / (1 - D)) with D the probability that an image is real.
      real: whether the target is "all are real".
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch. The chance level is log 2.
    Source: Goodfellow et al. 2014, arXiv:1406.2661, section 3 and algorithm 1.
    """
    logits = logits.astype(jnp.float32)
    return jnp.mean(nn.softplus(-logits if real else logits))


def hinge(scores: Shaped[Array, "batch ..."], real: bool, *, axis_name: str | None = None) -> Float[Array, ""]:
    """A discriminator's hinge loss: the mean of max(0, 1 - score) if all are real, of max(0, 1 + score) if not.

    The discriminator minimizes hinge(D(x), True) + hinge(D(G(z)), False). The generator minimizes -mean(D(G(z))).

    Args:
      scores: [batch, ...], of any size; what the discriminator takes for real has scores above 0.
      real: whether the target is "all are real".
      axis_name: not used, because the mean needs no other device's rows; all losses have it.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch. It is 1 where scores are 0.
    Source: Lim & Ye 2017, arXiv:1705.02894; for three scores at a time Donahue & Simonyan 2019, arXiv:1907.02544.
    """
    scores = scores.astype(jnp.float32)
    return jnp.mean(nn.relu(1.0 - scores if real else 1.0 + scores))


def region_squared_error(
    prediction: Float[Array, "batch height width channels"],
    target: Float[Array, "batch height width channels"],
    mask: Bool[Array, "batch height width"],
    *,
    weights: Float[Array, "#batch height width"] | None = None,
    axis_name: str | None = None,
) -> Float[Array, ""]:
    """Inpainting: the mean of weight * (prediction - target)^2 over the masked pixels of the global batch.

    Args:
      prediction, target: images [batch, height, width, channels].
      mask: [batch, height, width], True where the pixel was removed. The loss is 0 if the global batch has no such
        pixel.
      weights: >= 0, of each pixel: larger near the border of the removed region. None: 1.
      axis_name: mapped axis that the batch is sharded over; None if the arrays hold the whole batch.

    Returns: float32 scalar >= 0; its mean over devices is the loss of the whole batch.
    Raises: ValueError if the shapes do not agree.
    Source: Pathak et al. 2016, arXiv:1604.07379, eq. 1. The mean replaces the paper's norm.
    """
    prediction, target = _same(prediction, target)
    if prediction.ndim != 4 or mask.shape != prediction.shape[:3]:
        raise ValueError(
            f"images must be [batch, height, width, channels], mask [batch, height, width], got {prediction.shape}, "
            f"{mask.shape}"
        )
    error = jnp.mean((prediction - target) ** 2, axis=-1)
    return ops.mean_where(error if weights is None else weights * error, mask, axis_name)


def _same(
    prediction: Float[Array, "..."], target: Float[Array, "..."]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Checks the shapes and returns both in float32."""
    if prediction.shape != target.shape or prediction.ndim < 2:
        raise ValueError(
            f"prediction and target must be [batch, ...] of one shape, got {prediction.shape}, {target.shape}"
        )
    return prediction.astype(jnp.float32), target.astype(jnp.float32)
