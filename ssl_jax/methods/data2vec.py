"""data2vec, for images."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import drawing, masking


@dataclasses.dataclass(frozen=True)
class Data2Vec(Base):
    """Predicts, for an image's hidden patches, the features that a slowly moving teacher has of the whole image.

    A target is the mean of the outputs of the teacher's last `target_blocks` blocks. Each block's output is first
    normalized by each patch's own mean and deviation, and the mean is normalized in the same way; without that all
    targets become equal. The student is a linear layer on a ViT that sees a token in place of the hidden patches. Let
    `config.mask` hide blocks with a share of 0.6. The student's backbone is kept.

    Source: Baevski et al. 2022, arXiv:2202.03555, section 3, and the authors' code for images (data2vec_vision). The
    normalization of the targets, the initialization and the decay, constant from the first step, are the code's. Their
    ViT has model.positions="relative".
    """

    backbone: nn.Module
    schedule: Schedule
    target_blocks: Annotated[int, COUNT, "The teacher's last blocks whose mean is the target."] = 6
    beta: Annotated[float, POSITIVE, "Error at which the loss turns from squared to absolute."] = 2.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start."] = 0.9998
    final_decay: Annotated[float, SHARE, "The teacher's decay after `decay_steps`, and from then on."] = 0.9998
    decay_steps: Annotated[
        int, NOT_NEGATIVE, "Steps in which the decay goes in a straight line from `decay` to `final_decay`."
    ] = 0

    views = ("view",)
    masked = views

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_patches(self)
        if self.target_blocks > self.backbone.depth:
            raise ValueError(f"target_blocks must be in 1..model.depth={self.backbone.depth}, got {self.target_blocks}")

    @property
    def head(self) -> nn.Module:
        return nn.Dense(self.backbone.dim, kernel_init=drawing.beit_init)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        keys = jax.random.split(rng, 4)
        params, batch_stats = toolkit.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = drawing.draw_beit(keys[3], params["backbone"])
        teacher = toolkit.make_teacher({"backbone": self.backbone}, params, batch_stats)
        params["mask_token"] = drawing.beit_init(keys[1], (self.backbone.dim,))
        params["head"] = self.head.init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        (images,), (mask,) = batch["views"], batch["masks"]
        patches = masking.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        prediction: Any = self.head.apply({"params": params["head"]}, patches)
        target = self.targets(state["teacher"], images)
        loss = losses.masked_smooth_l1(prediction, target, mask, beta=self.beta, axis_name=axis_name)
        # The variance of each entry over the images and patches. Towards 0 the teacher has collapsed.
        metrics = {"target_variance": jnp.mean(jnp.var(target, axis=(0, 1)))}
        return Output(loss, state, metrics, embeddings=jnp.mean(patches, axis=1)[None])

    def targets(
        self, teacher: toolkit.Variables, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch patches dim"]:
        """Without gradient."""
        variables = {"params": teacher["params"]["backbone"]}
        return masking.mean_of_blocks(self.backbone, variables, images, self.target_blocks, over="entries")

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.linear(self.decay, self.final_decay, step, self.decay_steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic()
