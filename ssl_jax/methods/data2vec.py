"""data2vec, for images."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax import losses, optim
from ssl_jax.methods import _common, _tokens, _vit


@dataclasses.dataclass(frozen=True)
class Data2Vec:
    """Predicts, of an image's hidden patches, what a slowly moving teacher makes of the whole image.

    The targets are the mean of what the teacher's last `target_blocks` blocks give, each patch's normalized by its own
    mean and deviation in each block, and once more after the mean; without that all become equal. The student, a linear
    layer on a ViT, sees a token in place of the hidden patches; `config.mask` is to hide blocks with a share of 0.6.
    The teacher's decay goes from `decay` in a straight line to `final_decay` in `decay_steps`, and stays there. The
    student's backbone is kept.

    Source: Baevski et al. 2022, arXiv:2202.03555, section 3, and the authors' code for images (data2vec_vision), whose
    normalization of the targets, initialization and decay, constant from the first step, these are. Their ViT has
    model.positions="relative".
    """

    backbone: nn.Module
    run: _common.Run
    target_blocks: int = 6
    beta: float = 2.0  # where the loss turns from squared to absolute
    decay: float = 0.9998
    final_decay: float = 0.9998
    decay_steps: int = 0

    views: ClassVar[tuple[str, ...]] = ("view",)
    masked: ClassVar[tuple[str, ...]] = views
    chance_level: ClassVar[None] = None

    def __post_init__(self):
        _tokens.check_patches(self)
        _common.check_share(self, "decay", "final_decay")
        _common.check_positive(self, "beta")
        if not 1 <= self.target_blocks <= self.backbone.depth:
            raise ValueError(f"target_blocks must be in 1..model.depth={self.backbone.depth}, got {self.target_blocks}")

    @property
    def head(self) -> nn.Module:
        return nn.Dense(self.backbone.dim, kernel_init=_vit.beit_init)

    def init(self, rng, images):
        keys = jax.random.split(rng, 4)
        params, batch_stats = _common.init({"backbone": self.backbone}, keys[0], images)
        params["backbone"] = _vit.draw_beit(keys[3], params["backbone"])
        teacher = _common.make_teacher({"backbone": self.backbone}, params, batch_stats)
        params["mask_token"] = _vit.beit_init(keys[1], (self.backbone.dim,))
        params["head"] = self.head.init(keys[2], jnp.zeros((1, self.backbone.dim)))["params"]
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        (images,), (mask,) = batch["views"], batch["masks"]
        patches = _tokens.encode_masked(self.backbone, params, images, mask, axis_name=axis_name, rng=rng)
        prediction = self.head.apply({"params": params["head"]}, patches)
        target = self.targets(state["teacher"], images)
        loss = losses.masked_smooth_l1(prediction, target, mask, beta=self.beta, axis_name=axis_name)
        metrics = {
            "loss": loss,
            # Over the images, of each entry: towards 0 the teacher has collapsed.
            "target_variance": jnp.mean(jnp.var(target, axis=(0, 1))),
            "embeddings": jnp.mean(patches, axis=1)[None],
        }
        return loss, (state, metrics)

    def targets(self, teacher: Any, images: Any) -> Any:
        """[batch, patches, dim], without gradient."""
        variables = {"params": teacher["params"]["backbone"]}
        outputs = self.backbone.apply(variables, images, last_blocks=self.target_blocks)
        outputs = jax.nn.standardize(outputs[:, :, self.backbone.num_prefix :], axis=-1, epsilon=1e-5)
        return lax.stop_gradient(jax.nn.standardize(jnp.mean(outputs, axis=1), axis=-1, epsilon=1e-5))

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.linear(self.decay, self.final_decay, step, self.decay_steps)
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.online_backbone
    features = _common.features
