"""BEiT with k-means of patches as its tokenizer."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing, kmeans, masking, memories, tiling
from ssl_jax.models.patches import patchify, unpatchify
from ssl_jax.models.positions import patch_grid
from ssl_jax.ops import first_row, global_sum

# {"centroids": [codes, pixels], "sizes": [codes], how many points of a batch each has, averaged as the centroids are}
Codebook = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class BEiTKMeans(Base):
    """Predicts the tokens of an image's hidden patches. A tokenizer made of the same data gives each patch its token.

    BEiT's tokenizer is the discrete VAE of DALL-E, trained before on other images: results of this method are not
    BEiT's. Here the token of a patch is the nearest of `codes` centroids of patches. With `normalize`, each patch is
    first normalized by its own mean and deviation. Each batch of the first `tokenizer_steps` moves the centroids once
    (see `fit`), so the targets move too. Afterwards the centroids stay as they are. In the first step all tokens are 0.

    The encoder is a ViT that sees a mask token in place of the hidden patches. A linear layer after its last LayerNorm
    classifies. Let `config.mask` hide blocks with a share of 0.4.

    Source: Bao et al. 2021, arXiv:2106.08254, section 2. Their ViT has model.positions="relative". Their tokenizer
    sees a second view of 112 pixels; this one sees the same view.
    """

    backbone: nn.Module
    schedule: Schedule
    codes: Annotated[int, Range(2), "Number of different tokens; BEiT has 8192."] = 512
    normalize: Annotated[bool, "Clusters patches normalized by their own mean and deviation."] = True
    tokenizer_steps: Annotated[int, COUNT, "Steps in which the centroids move."] = 1000
    decay: Annotated[float, SHARE, "Share that the centroids' running average keeps at each batch."] = 0.99
    restart_below: Annotated[
        float,
        SHARE,
        "A code begins anew if it has less than this share of the mean number of points of a code.",
    ] = 0.05

    views = ("view",)
    masked = views
    # chance_level: equal embeddings can still predict how frequent each token is, which the metric frequency_loss
    # shows. log(codes) is more, and would let a collapsed network pass for one that has learnt.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_patches(self)

    @property
    def head(self) -> nn.Module:
        return nn.Dense(self.codes, kernel_init=drawing.beit_init)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        _, patches, pixels = patchify(images, self.backbone.patch_size).shape
        if self.codes > self.schedule.batch_size * patches:
            raise ValueError(
                f"codes={self.codes} start as patches of the first batch, which has "
                f"{self.schedule.batch_size} images with {patches} patches each; use "
                f"codes={self.schedule.batch_size * patches} or less"
            )
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = drawing.draw_beit(keys[3], params["backbone"])
        params["mask_token"] = drawing.beit_init(keys[1], (self.backbone.dim,))
        params["head"] = self.head.init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {
            "batch_stats": batch_stats,
            "codebook": {"centroids": jnp.zeros((self.codes, pixels)), "sizes": jnp.zeros(self.codes)},
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
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
        # Once the codebook is frozen, the new one is dropped. Its sums over devices go on, twice codes x pixels numbers
        # a step (25 MB each for BEiT's 8192), because collectives in a lax.cond are not safe: see training/step.py.
        fitting = state["step"] < self.tokenizer_steps
        codebook = jax.tree.map(lambda new, old: jnp.where(fitting, new, old), codebook, state["codebook"])
        logits, patches = self.predict(params, images, mask, rng_encoder, axis_name)
        loss = losses.masked_cross_entropy(logits, tokens, mask, axis_name=axis_name)
        # Of the tokens of all patches of the batch: the loss of a prediction of their frequencies.
        entropy = jnp.sum(jax.scipy.special.entr(counts / jnp.sum(counts)))
        labels = jnp.where(mask, tokens, -1)
        metrics = {
            "frequency_loss": entropy,
            "codebook_perplexity": jnp.exp(entropy),  # so many equally frequent codes have this entropy
            "accuracy": toolkit.accuracy(logits.reshape(-1, self.codes), labels.reshape(-1), axis_name),
        }
        state = {**state, "codebook": codebook}
        return Output(loss, state, metrics, embeddings=jnp.mean(patches, axis=1)[None])

    def points(self, images: Float[Array, "batch _ _ channels"]) -> Float[Array, "batch patches pixels"]:
        """What is clustered: the pixels of each patch, with `normalize` normalized."""
        patches = patchify(images, self.backbone.patch_size)
        if not self.normalize:
            return patches
        mean, deviation = masking.moments(patches)
        return (patches - mean) / deviation

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        rng: Key[Array, ""] | None,
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch patches codes"], Float[Array, "batch patches dim"]]:
        """(logits of all patches, their embeddings)"""
        patches = masking.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        logits: Any = self.head.apply({"params": params["head"]}, patches)
        return logits, patches

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """Each token is drawn as its centroid; with `normalize`, with the true patch's mean and deviation."""
        (images,), (mask,) = batch["views"], batch["masks"]
        _, height, width, _ = images.shape
        size, centroids = self.backbone.patch_size, state["codebook"]["centroids"]
        mean, deviation = masking.moments(patchify(images, size)) if self.normalize else (0.0, 1.0)
        logits, _ = self.predict(params, images, mask, rng, None)
        true, predicted = tokenize(centroids, self.points(images)), jnp.argmax(logits, axis=-1)
        of_true, of_predicted = (centroids[tokens] * deviation + mean for tokens in (true, predicted))
        made = masking.pictures(images, mask, size, of_predicted)
        return {"image": images, "tokens": unpatchify(of_true, (height, width), size), **made}

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "step": jnp.asarray(step, jnp.int32)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # By all-reduce: of each code the sum of its points and their number, and the point that it may begin anew at.
        # By all-gather: one score for each patch, by which these points are drawn.
        height, width, channels = view
        rows, columns = patch_grid((height, width), self.backbone.patch_size)
        pixels = self.backbone.patch_size**2 * channels
        return Traffic(
            reduced=4 * self.codes * (2 * pixels + 1),
            gathered=toolkit.row_bytes(self.schedule.batch_size, rows * columns),
        )


def tokenize(
    centroids: Float[Array, "codes pixels"], points: Float[Array, "batch patches pixels"]
) -> Int[Array, "batch patches"]:
    """The index of the centroid nearest to each point."""
    return kmeans.nearest(points.reshape(-1, points.shape[-1]), centroids).reshape(points.shape[:2])


def fit(
    codebook: Codebook,
    points: Float[Array, "batch patches pixels"],
    rng: Key[Array, ""],
    index: ops.Index,
    *,
    decay: float,
    restart_below: float,
    axis_name: str | None,
) -> tuple[Int[Array, "batch patches"], Float[Array, "codes"], Codebook]:
    """One step of k-means over batches -> (the points' tokens, points of each code in the global batch, new codebook).

    A centroid is the average of the points that were assigned to it. A batch's points weigh `decay` to the power of the
    batch's age. The sizes are averaged in the same way.

    After that, a code is dead if it has less than `restart_below` of the mean number of points of a code. A dead code
    forgets its points and begins anew at a point of this batch. A point is drawn with a probability that grows with the
    square of its distance from its centroid. So no code begins at a point that has a centroid already, such as a flat
    patch: those are many, and equal but for rounding.

    The tokens are those of the codebook as it comes in.

    Args:
      codebook: all zeros at first. Then the tokens of all points are 0.
      points: this device's rows of the batch.
      rng, index: the key of the drawing, and the images' numbers.
      axis_name: mapped axis that the batch is spread over. The tokens are those of this device's rows; all else is the
        same on all devices.
    Source: the exponential averages of van den Oord et al. 2017, arXiv:1711.00937, appendix A.1, without a network;
      restarts as in Dhariwal et al. 2020, arXiv:2005.00341, section 3.1, with the distances of k-means++ (Arthur and
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
    index: ops.Index,
    points: Float[Array, "batch patches pixels"],
    weights: Float[Array, "batch patches"],
    count: int,
    axis_name: str | None,
) -> Float[Array, "count pixels"]:
    """Draws `count` different points of the global batch. The same on any number of devices.

    One point is drawn after the other. Each time, the probability of each point that is left is proportional to its
    weight, >= 0.

    Source: Efraimidis and Spirakis 2006, Weighted random sampling with a reservoir.
    """
    scores = (jnp.log(tiling.uniform(rng, index, points.shape[1:2])) / weights).reshape(-1)
    everywhere = memories.gather(scores, axis_name)
    mine = lax.top_k(everywhere, count)[1] - first_row(scores, axis_name)
    here = (mine >= 0) & (mine < len(scores))
    rows = points.reshape(len(scores), -1)[jnp.clip(mine, 0, len(scores) - 1)]
    return global_sum(jnp.where(here[:, None], rows, 0.0), axis_name)
