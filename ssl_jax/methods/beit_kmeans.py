"""BEiT with k-means of patches as its tokenizer."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import codebook, drawing, masking
from ssl_jax.models.patches import patchify, unpatchify
from ssl_jax.models.positions import patch_grid


@dataclasses.dataclass(frozen=True)
class BEiTKMeans(Base):
    """Predicts the tokens of an image's hidden patches. A tokenizer made of the same data gives each patch its token.

    BEiT's tokenizer is the discrete VAE of DALL-E, trained before on other images: results of this method are not
    BEiT's. Here the token of a patch is the nearest of `codes` centroids of patches. With `normalize`, each patch is
    first normalized by its own mean and deviation. Each batch of the first `tokenizer_steps` moves the centroids once
    (see `codebook.fit`), so the targets move too. Afterwards the centroids stay as they are. In the first step all
    tokens are 0.

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
            "codebook": codebook.empty(self.codes, pixels),
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        rng_tokenizer, rng_encoder = jax.random.split(rng)
        tokens, counts, moved = codebook.fit(
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
        moved = jax.tree.map(lambda new, old: jnp.where(fitting, new, old), moved, state["codebook"])
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
        state = {**state, "codebook": moved}
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
        true, predicted = codebook.tokenize(centroids, self.points(images)), jnp.argmax(logits, axis=-1)
        of_true, of_predicted = (centroids[tokens] * deviation + mean for tokens in (true, predicted))
        made = masking.pictures(images, mask, size, of_predicted)
        return {"image": images, "tokens": unpatchify(of_true, (height, width), size), **made}

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "step": jnp.asarray(step, jnp.int32)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # By all-gather: one score for each patch, by which the points are drawn that codes begin anew at.
        height, width, channels = view
        rows, columns = patch_grid((height, width), self.backbone.patch_size)
        pixels = self.backbone.patch_size**2 * channels
        return Traffic(
            reduced=codebook.reduced_bytes(self.codes, pixels),
            gathered=toolkit.row_bytes(self.schedule.batch_size, rows * columns),
        )
