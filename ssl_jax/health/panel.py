"""The health metrics of a training step: how its embeddings spread. See docs/metrics.md."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ssl_jax.health import representation
from ssl_jax.health.spectrum import spectral

IMAGES = 1024  # at most this many are measured: the cost grows with the square of their number
SPECTRAL = ("rankme", "stable_rank", "nesum", "alpha_req", "alpha_req_r2")  # all from the same two SVDs
OF_ONE_VIEW = ("embedding_std", "uniformity", "embedding_dim", "rank_limit", *SPECTRAL)
OF_VIEWS = (*OF_ONE_VIEW, "alignment")


def names(views: int) -> tuple[str, ...]:
    """Names of the metrics that `measure` gives for embeddings of this many views."""
    return OF_VIEWS if views > 1 else OF_ONE_VIEW


def measure(embeddings: Float[Array, "views batch dim"], axis_name: str) -> dict[str, Float[Array, ""]]:
    """How the embeddings of the global batch (its first `IMAGES` rows) spread.

    "embedding_std", "uniformity" and the metrics in `SPECTRAL` are of the first view. "alignment" is of the first two
    views, if there are two. Compare the metrics with "embedding_dim" and with "rank_limit", the largest possible rank.
    "alpha_req" is NaN if the batch or the embedding is too small for it.

    Methods with one view report uncentered features, so their mean is subtracted first.
    """
    # Gathered as invarying. Otherwise check_vma refuses the loop in which TPUs compute the SVD.
    views = lax.all_gather(lax.stop_gradient(embeddings), axis_name, axis=1, tiled=True, to="invarying")
    views = views[:, :IMAGES]
    z1 = views[0] if len(views) > 1 else views[0] - jnp.mean(views[0], axis=0)
    of_spectrum = spectral(z1)
    values = {name: of_spectrum[name] for name in SPECTRAL} | {
        "embedding_std": representation.embedding_std(z1),
        "uniformity": representation.uniformity(z1),
        "embedding_dim": jnp.float32(z1.shape[-1]),
        "rank_limit": jnp.float32(min(z1.shape)),
    }
    if len(views) > 1:
        values["alignment"] = representation.alignment(z1, views[1])
    return values
