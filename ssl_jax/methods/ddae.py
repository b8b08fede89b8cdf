"""DDAE."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops
from ssl_jax.keys import SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import tiling
from ssl_jax.models.abilities import predicts_noise


@dataclasses.dataclass(frozen=True)
class DDAE(Base):
    """Denoising diffusion autoencoder: predicts the noise in an image at a random step between image and noise.

    It is DDPM's training, for a baseline of diffusion models' features. loss = mean (noise - prediction)^2, with the
    step of each image uniform in 1, ..., model.noise_steps. The features are those of a block on the way up of the
    network, for an image with little noise: model.feature_block and model.feature_step, whose best values depend on the
    data. An average of the weights is evaluated. Its decay at step n is the smaller of `decay` and 1 - n^(-2/3).

    Images must be in -1..1: give data.mean and data.std 0.5.

    Source: Xiang et al. 2023, arXiv:2303.09769, and the authors' code; Ho, Jain & Abbeel 2020, arXiv:2006.11239,
    eq. 14.
    """

    backbone: nn.Module
    schedule: Schedule
    decay: Annotated[float, SHARE, "Largest decay of the average of the weights."] = 0.9999

    views = ("view",)
    chance_level = 1.0  # of a prediction of 0: the variance of the noise

    backbone_variables = toolkit.teacher_backbone

    def __post_init__(self) -> None:
        super().__post_init__()
        if not predicts_noise(self.backbone):
            raise ValueError(
                f"this method's backbone predicts the noise in an image, which a {type(self.backbone).__name__} does "
                "not; use model.name=ddpm_unet"
            )

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        networks = {"backbone": self.backbone}
        params, batch_stats = toolkit.init(networks, rng, images)
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(networks, params, batch_stats),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,) = batch["views"]
        rng_noise, rng_dropout = jax.random.split(rng)
        noisy, noise, steps = self.perturb(rng_noise, batch["index"], images)
        (prediction, features), stats = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            state["batch_stats"]["backbone"],
            noisy,
            steps,
            axis_name=axis_name,
            rng=rng_dropout,
            method="predict_noise",
        )
        loss = losses.squared_error(prediction, noise, axis_name=axis_name)
        state = {**state, "batch_stats": {"backbone": stats}}
        return Output(loss, state, {}, embeddings=jnp.mean(features, axis=(1, 2))[None])

    def perturb(
        self, rng: Key[Array, ""], index: ops.Index, images: Float[Array, "batch height width channels"]
    ) -> tuple[
        Float[Array, "batch height width channels"], Float[Array, "batch height width channels"], Int[Array, "batch"]
    ]:
        """(noisy images, their noise, their steps), by the images' indices."""
        rng_noise, rng_steps = jax.random.split(rng)
        draw = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:]))
        noise = draw(tiling.image_keys(rng_noise, index))
        steps = 1 + tiling.offsets(rng_steps, index, (), self.backbone.noise_steps)
        return self.backbone.add_noise(images, noise, steps), noise, steps

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = jnp.minimum(self.decay, 1.0 - jnp.asarray(step, jnp.float32) ** (-2 / 3))
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """Denoised is what the average of the weights makes of the noisy images in one step."""
        (images,) = batch["views"]
        noisy, _, steps = self.perturb(rng, batch["index"], images)
        variables = self.backbone_variables(params, state)
        found: Any = self.backbone.apply(variables, noisy, steps, method="predict_noise")
        denoised = jnp.clip(self.backbone.remove_noise(noisy, found[0], steps), -1.0, 1.0)
        return {"image": images, "noisy": noisy, "denoised": denoised}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # In a block, the biases of time and conv1 are added to one sum, and so are those of shortcut and conv2. XLA
        # finds that the two have one gradient, and sends it once.
        shapes: Any = jax.eval_shape(self.backbone.init, jax.random.key(0), jnp.zeros((1, *view)))
        blocks = [block for block in shapes["params"].values() if "conv1" in block]
        twice = [block[name]["bias"] for block in blocks for name in ("time", "shortcut") if name in block]
        return Traffic(unused=sum(4 * bias.size for bias in twice))
