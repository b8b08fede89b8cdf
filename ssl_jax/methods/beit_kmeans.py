"""BEiT with k-means of patches as its tokenizer."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses
from ssl_jax.losses._common import first_row, global_sum
from ssl_jax.methods import _common, _kmeans, _queue, _tiles, _tokens, _vit
from ssl_jax.models.patches import patchify, unpatchify

# {"centroids": [codes, pixels], "sizes": [codes], points that each has of a batch, averaged as the centroids are}
Codebook = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class BEiTKMeans:
    """Classifies an image's hidden patches by their token, which a tokenizer made of the same data gives each patch.

    BEiT's tokenizer is the discrete VAE of DALL-E, trained before on other images: results of this method are not
    BEiT's. Here the token of a patch is the nearest of `codes` centroids of patches, with `normalize` relative to
    their own mean and deviation. The centroids are fitted during the first `tokenizer_steps`, with each batch a step
    (see `fit`), and stay as they are afterwards; until then the targets move with them. In the first step all tokens
    are 0.

    The encoder is a ViT that sees a token in place of the hidden patches; a linear layer after its last LayerNorm
    classifies. `config.mask` is to hide blocks with a share of 0.4.

    Source: Bao et al. 2021, arXiv:2106.08254, section 2. Their ViT has model.positions="relative"; their tokenizer
    sees a second view of 112 pixels, this one the same view.
    """

    backbone: nn.Module
    run: _common.Run
    codes: int = 512  # BEiT: 8192
    normalize: bool = True
    tokenizer_steps: int = 1000
    decay: float = 0.99  # of the centroids, for each batch
    restart_below: float = 0.05  # of the points of a batch that a code has when they are shared out evenly

    views: ClassVar[tuple[str, ...]] = ("view",)
    masked: ClassVar[tuple[str, ...]] = views
    # Equal embeddings can still predict how frequent each token is: see the metric frequency_loss. log(codes), which is
    # more, would pass a collapsed network off as one that has learnt.
    chance_level: ClassVar[None] = None

    def __post_init__(self):
        _tokens.check_patches(self)
        _common.check_positive(self, "tokenizer_steps")
        _common.check_share(self, "decay", "restart_below")
        if self.codes < 2:
            raise ValueError(f"codes must be at least 2, got {self.codes}")

    @property
    def head(self) -> nn.Module:
        return nn.Dense(self.codes, kernel_init=_vit.beit_init)

    def init(self, rng, images):
        _, patches, pixels = patchify(images, self.backbone.patch_size).shape
        if self.codes > self.run.batch_size * patches:
            raise ValueError(
                f"codes={self.codes} begin as patches of a batch, which has {self.run.batch_size} images of {patches}; "
                f"use codes={self.run.batch_size * patches} or less"
            )
        keys = jax.random.split(rng, 4)
        params, batch_stats = _common.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = _vit.draw_beit(keys[3], params["backbone"])
        params["mask_token"] = _vit.beit_init(keys[1], (self.backbone.dim,))
        params["head"] = self.head.init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {
            "batch_stats": batch_stats,
            "codebook": {"centroids": jnp.zeros((self.codes, pixels)), "sizes": jnp.zeros(self.codes)},
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,), (mask,) = batch["views"], batch["masks"]
        rng_tokenizer, rng_encoder = jax.random.split(rng)
        tokens, counts, codebook = fit(
            state["codebook"],
            self.points(images),
            rng_tokenizer,
            batch["index"],
            decay=self.decay,
            restart_below=self.restart_below,
            axis_name=axis_name,
        )
        # Once it is frozen, the new one is dropped. Its sums over devices go on, twice codes x pixels numbers a step
        # (25 MB each for BEiT's 8192), as collectives in a lax.cond are not safe: see step.py.
        fitting = state["step"] < self.tokenizer_steps
        codebook = jax.tree.map(lambda new, old: jnp.where(fitting, new, old), codebook, state["codebook"])
        logits, patches = self.predict(params, images, mask, rng_encoder, axis_name)
        loss = losses.masked_cross_entropy(logits, tokens, mask, axis_name=axis_name)
        # Of the tokens of all patches of the batch; what a prediction of their frequencies would give.
        entropy = jnp.sum(jax.scipy.special.entr(counts / jnp.sum(counts)))
        labels = jnp.where(mask, tokens, -1)
        metrics = {
            "loss": loss,
            "frequency_loss": entropy,
            "codebook_perplexity": jnp.exp(entropy),  # so many codes, equally frequent, would have it
            "accuracy": _common.accuracy(logits.reshape(-1, self.codes), labels.reshape(-1), axis_name),
            "embeddings": jnp.mean(patches, axis=1)[None],
        }
        return loss, ({**state, "codebook": codebook}, metrics)

    def points(self, images: Float[Array, "batch _ _ channels"]) -> Float[Array, "batch patches pixels"]:
        """What of each patch is clustered."""
        patches = patchify(images, self.backbone.patch_size)
        if not self.normalize:
            return patches
        mean, deviation = _tokens.moments(patches)
        return (patches - mean) / deviation

    def predict(self, params: Any, images: Any, mask: Any, rng: Any, axis_name: str | None) -> tuple[Any, Any]:
        """(logits of all patches, their embeddings)"""
        patches = _tokens.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        return self.head.apply({"params": params["head"]}, patches), patches

    def pictures(self, params, state, batch, rng):
        """Tokens are drawn as their centroids, with `normalize` with the mean and the deviation of the true patch."""
        (images,), (mask,) = batch["views"], batch["masks"]
        size, centroids = self.backbone.patch_size, state["codebook"]["centroids"]
        mean, deviation = _tokens.moments(patchify(images, size)) if self.normalize else (0.0, 1.0)
        logits, _ = self.predict(params, images, mask, rng, None)
        true, predicted = tokenize(centroids, self.points(images)), jnp.argmax(logits, axis=-1)
        of_true, of_predicted = (centroids[tokens] * deviation + mean for tokens in (true, predicted))
        made = _tokens.pictures(images, mask, size, of_predicted)
        return {"image": images, "tokens": unpatchify(of_true, images.shape[1:3], size), **made}

    def update(self, params: Any, state: Any, step: Any) -> Any:
        return {**state, "step": jnp.asarray(step, jnp.int32)}

    backbone_variables = _common.online_backbone
    features = _common.features


def tokenize(
    centroids: Float[Array, "codes pixels"], points: Float[Array, "batch patches pixels"]
) -> Int[Array, "batch patches"]:
    """The index of the centroid nearest to each point."""
    return _kmeans.nearest(points.reshape(-1, points.shape[-1]), centroids).reshape(points.shape[:2])


def fit(
    codebook: Codebook,
    points: Float[Array, "batch patches pixels"],
    rng: Key[Array, ""],
    index: Int[Array, "batch"],
    *,
    decay: float,
    restart_below: float,
    axis_name: str | None,
) -> tuple[Int[Array, "batch patches"], Float[Array, "codes"], Codebook]:
    """One step of k-means over batches -> (the points' tokens, how many have each in the global batch, new codebook).

    A centroid is the mean of the points that were assigned to it, those of a batch weighted by `decay` to the power of
    its age; so are sizes. After that a code is dead which has less than `restart_below` of the points that each would
    have were they shared out evenly: it forgets its points, and begins anew at one of this batch, drawn with a
    probability that grows with the square of its distance from its centroid. So none begins among points that have one
    already, as flat patches, which are many and equal but for rounding. Tokens are of the codebook as it comes in.

    Args:
      codebook: all zeros at first, when the tokens of all points are 0.
      points: this device's slice of the batch. rng, index: of the drawing, and the images' numbers.
      axis_name: mapped axis that the batch is split over; tokens are the slice's, all else is the same on all devices.
    Source: the exponential averages of van den Oord et al. 2017, arXiv:1711.00937, appendix A.1, without a network;
      restarts as of Dhariwal et al. 2020, arXiv:2005.00341, section 3.1, with the distances of k-means++ (Arthur and
      Vassilvitskii 2007).
    """
    centroids, codes = codebook["centroids"], len(codebook["sizes"])
    tokens = tokenize(centroids, points)
    rows, labels = points.reshape(-1, points.shape[-1]), tokens.reshape(-1)
    counts = global_sum(jax.ops.segment_sum(jnp.ones(len(rows)), labels, codes), axis_name)
    sums = global_sum(jax.ops.segment_sum(rows, labels, codes), axis_name)
    old, new = decay * codebook["sizes"], jnp.where(codebook["sizes"] > 0, 1.0 - decay, 1.0)
    sizes = old + new * counts
    moved = (old[:, None] * centroids + new[:, None] * sums) / jnp.where(sizes > 0, sizes, 1.0)[:, None]
    dead = sizes < restart_below * jnp.sum(counts) / codes
    distances = jnp.sum((points - centroids[tokens]) ** 2, axis=-1)
    fresh = draw_points(rng, index, points, distances, codes, axis_name)[jnp.cumsum(dead) - 1]  # the first ones drawn
    moved = jnp.where(dead[:, None], fresh, jnp.where(sizes[:, None] > 0, moved, centroids))
    return tokens, counts, {"centroids": moved, "sizes": jnp.where(dead, 0.0, sizes)}


def draw_points(
    rng: Key[Array, ""],
    index: Int[Array, "batch"],
    points: Float[Array, "batch patches pixels"],
    weights: Float[Array, "batch patches"],
    count: int,
    axis_name: str | None,
) -> Float[Array, "count pixels"]:
    """`count` different ones of the global batch's points, one after the other, of those left each with a probability
    proportional to its weight, >= 0; the same on any number of devices.

    Source: Efraimidis and Spirakis 2006, Weighted random sampling with a reservoir.
    """
    scores = (jnp.log(_tiles.uniform(rng, index, points.shape[1:2])) / weights).reshape(-1)
    everywhere = _queue.gather(scores, axis_name)
    mine = lax.top_k(everywhere, count)[1] - first_row(scores, axis_name)
    here = (mine >= 0) & (mine < len(scores))
    rows = points.reshape(len(scores), -1)[jnp.clip(mine, 0, len(scores) - 1)]
    return global_sum(jnp.where(here[:, None], rows, 0.0), axis_name)
