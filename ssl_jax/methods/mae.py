"""MAE."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from ssl_jax.keys import COUNT, INNER_SHARE, OneOf
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import autoencoding, masking
from ssl_jax.models.patches import patchify


@dataclasses.dataclass(frozen=True)
class MAE(Base):
    """Sees a quarter of an image's patches, and draws the others.

    The encoder is given the visible patches alone, which makes it some times faster; a smaller transformer, which is
    thrown away afterwards, predicts the pixels of the hidden ones from its tokens. With `normalize` they are to be
    predicted relative to their patch's mean and deviation.

    Give the ViT fixed positions, model.positions="sincos". Its kernels are drawn by Xavier's rule, as the decoder's.

    Pixio (config mae:pixio_vith16) is this with a deeper decoder, larger hidden squares (config.mask.unit), more class
    tokens (model.registers) and learned positions.

    Source: He et al. 2021, arXiv:2111.06377, section 3, and the authors' code. Pixio: Yang et al. 2025,
      arXiv:2512.15715, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    mask_ratio: Annotated[float, INNER_SHARE, "Share of each image's patches that the encoder does not see."] = 0.75
    normalize: Annotated[bool, "Predicts each patch's pixels relative to their mean and deviation."] = True
    decoder_dim: Annotated[int, COUNT, "Width of the decoder."] = 512
    decoder_depth: Annotated[int, COUNT, "Blocks of the decoder."] = 8
    decoder_heads: Annotated[int, COUNT, "Attention heads of the decoder."] = 16
    decoder_positions: Annotated[
        str,
        OneOf(("sincos", "learned")),
        "Positions in the decoder. sincos: fixed, of patches. learned: of all.",
    ] = "sincos"

    views = ("view",)
    masked = views
    # chance_level: the variance of the patches, which the metric patch_mean_loss shows.

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)

    def decoder(self, images: Float[Array, "batch height width channels"]) -> autoencoding.Decoder:
        """For images of this size."""
        return autoencoding.decoder(
            self.backbone,
            images,
            dim=self.decoder_dim,
            depth=self.decoder_depth,
            heads=self.decoder_heads,
            positions=self.decoder_positions,
        )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = autoencoding.draw_backbone(keys[1], keys[2], params["backbone"])
        params["decoder"] = autoencoding.init_decoder(keys[3], self.decoder(images), self.backbone.dim)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, tokens = self.predict(params, images, mask, rng, axis_name)
        target = patchify(images, self.backbone.patch_size)
        loss, of_means = autoencoding.pixel_loss(
            prediction, target, mask, normalize=self.normalize, axis_name=axis_name
        )
        embeddings = jnp.mean(tokens[:, self.backbone.num_prefix :], axis=1)[None]
        return Output(loss, state, {"patch_mean_loss": of_means}, embeddings=embeddings)

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> tuple[Float[Array, "batch patches pixels"], Float[Array, "batch _ dim"]]:
        """(pixels of all patches, tokens of the class and of the visible patches)"""
        keep = masking.unmasked(mask, self.mask_ratio)
        tokens, _ = toolkit.train_apply(
            self.backbone, params["backbone"], {}, images, axis_name=axis_name, rng=rng, method="tokens", keep=keep
        )
        prediction: Any = self.decoder(images).apply(
            {"params": params["decoder"]}, tokens, mask, train=True, axis_name=axis_name
        )
        return prediction, tokens

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images,), (mask,) = batch["views"], batch["masks"]
        prediction, _ = self.predict(params, images, mask, rng, None)
        return autoencoding.reconstructions(
            images, mask, self.backbone.patch_size, prediction, normalize=self.normalize
        )

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()
