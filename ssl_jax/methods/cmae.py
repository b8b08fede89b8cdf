"""CMAE."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, INNER_SHARE, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import autoencoding, masking
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.models.patches import patchify


@dataclasses.dataclass(frozen=True)
class CMAE(Base):
    """MAE whose image is also found in the batch, from what it saw of it, by a slowly moving teacher's projection.

    Beside MAE's decoder of pixels a second, shallow decoder gives features of all patches. Their mean is projected and
    predicted. The teacher sees the whole of nearly the same crop, of other colors, and projects the mean of its patches
    before the last LayerNorm. The loss is MAE's plus `contrastive` * 2 * temperature * the cross entropy of finding the
    own teacher's projection among those of the batch.

    The crops must agree: let config.augment.target have a `shift`, and otherwise the geometry of config.augment.view.
    The paper hides squares of two patches a side (config.mask.unit=2). Give the ViT fixed positions,
    model.positions="sincos". First weights are MAE's. The student's backbone is kept.

    Source: Huang et al. 2022, arXiv:2207.13532, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    mask_ratio: Annotated[float, INNER_SHARE, "Share of each image's patches that the encoder does not see."] = 0.65
    normalize: Annotated[bool, "Predicts each patch's pixels relative to their mean and deviation."] = True
    decoder_dim: Annotated[int, COUNT, "Width of both decoders."] = 512
    decoder_depth: Annotated[int, COUNT, "Blocks of the decoder of pixels."] = 8
    decoder_heads: Annotated[int, COUNT, "Attention heads of both decoders."] = 16
    feature_depth: Annotated[int, COUNT, "Blocks of the decoder of features."] = 2
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (1536, 256)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (1536, 256)
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.07
    contrastive: Annotated[float, NOT_NEGATIVE, "Weight of the contrastive loss, where that of pixels has 1."] = 1.0
    decay: Annotated[float, SHARE, "The teacher's decay, which is constant."] = 0.996

    views = ("view", "target")
    masked = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)
        toolkit.check_predictor(self)

    @property
    def heads(self) -> toolkit.Networks:
        """Of the student; the teacher has the projector alone."""
        both = {"projector": self.projector, "predictor": self.predictor}
        return {name: MLP(widths, hidden_bias=True, kernel_init=torch_init) for name, widths in both.items()}

    def decoders(self, images: Float[Array, "batch height width channels"]) -> dict[str, autoencoding.Decoder]:
        """For images of this size, by their names in params."""
        both = {"decoder": (self.decoder_depth, 0), "feature_decoder": (self.feature_depth, self.backbone.dim)}
        return {
            name: autoencoding.decoder(
                self.backbone, images, dim=self.decoder_dim, depth=depth, heads=self.decoder_heads, outputs=outputs
            )
            for name, (depth, outputs) in both.items()
        }

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 6)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = autoencoding.draw_backbone(keys[1], keys[2], params["backbone"])
        head_params, head_stats = toolkit.init(self.heads, keys[3], jnp.zeros((2, self.backbone.dim)))
        params, batch_stats = {**params, **head_params}, {**batch_stats, **head_stats}
        for key, (name, decoder) in zip(keys[4:], self.decoders(images).items(), strict=True):
            params[name] = autoencoding.init_decoder(key, decoder, self.backbone.dim)
        copied = {"backbone": self.backbone, "projector": self.heads["projector"]}
        return params, {"batch_stats": batch_stats, "teacher": toolkit.make_teacher(copied, params, batch_stats)}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images, whole), (mask,) = batch["views"], batch["masks"]
        found = self.predict(params, images, mask, rng, axis_name)
        loss, of_means = autoencoding.pixel_loss(
            found["decoder"],
            patchify(images, self.backbone.patch_size),
            mask,
            normalize=self.normalize,
            axis_name=axis_name,
        )
        heads, batch_stats = toolkit.forward(
            self.heads,
            params,
            state["batch_stats"],
            jnp.mean(found["feature_decoder"], axis=1),
            axis_name=axis_name,
        )
        target, teacher = self.teacher_projections(state["teacher"], whole, axis_name)
        nce = losses.info_nce(heads["predictor"], target, temperature=self.temperature, axis_name=axis_name)
        metrics = {"patch_mean_loss": of_means, "pixel_loss": loss, "info_nce": nce}
        loss += self.contrastive * 2.0 * self.temperature * nce
        state = {**state, "batch_stats": batch_stats, "teacher": teacher}
        return Output(loss, state, metrics, embeddings=jnp.stack([heads["projector"], target]))

    def predict(
        self,
        params: Params,
        images: Float[Array, "batch height width channels"],
        mask: Bool[Array, "batch patches"],
        rng: Key[Array, ""],
        axis_name: str | None,
    ) -> dict[str, Float[Array, "batch patches _"]]:
        """What each of the two decoders gives for all patches."""
        tokens, _ = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            {},
            images,
            axis_name=axis_name,
            rng=rng,
            method="tokens",
            keep=masking.unmasked(mask, self.mask_ratio),
        )
        found: Any = {
            name: decoder.apply({"params": params[name]}, tokens, mask, train=True, axis_name=axis_name)
            for name, decoder in self.decoders(images).items()
        }
        return found

    def teacher_projections(
        self, teacher: toolkit.Variables, images: Float[Array, "batch height width channels"], axis_name: str | None
    ) -> tuple[Float[Array, "batch dim"], dict[str, Any]]:
        """(projections without gradient, the teacher with the projector's new BatchNorm statistics)"""
        params, batch_stats = teacher["params"], teacher["batch_stats"]
        outputs, _ = toolkit.train_apply(
            without_noise(self.backbone), params["backbone"], {}, images, axis_name=axis_name, last_blocks=1
        )
        mean = jnp.mean(outputs[:, 0, self.backbone.num_prefix :], axis=1)
        networks = {"projector": self.heads["projector"]}
        projected, batch_stats = toolkit.forward(networks, params, batch_stats, mean, axis_name=axis_name)
        return lax.stop_gradient(projected["projector"]), {**teacher, "batch_stats": lax.stop_gradient(batch_stats)}

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        (images, whole), (mask,) = batch["views"], batch["masks"]
        found = self.predict(params, images, mask, rng, None)["decoder"]
        made = autoencoding.reconstructions(images, mask, self.backbone.patch_size, found, normalize=self.normalize)
        return {**made, "target": whole}

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, self.decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The teacher's projections are gathered. They have no gradient.
        return Traffic(
            passes=1, teacher_passes=1, gathered=toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        )
