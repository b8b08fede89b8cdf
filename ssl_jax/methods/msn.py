"""MSN and PMSN."""

import dataclasses
import math
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import losses, optim
from ssl_jax.methods import _common, _tokens
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class MSN:
    """An anchor, a view with patches left out or a small crop, is assigned to the prototypes as the whole target is.

    `config.mask` (kind "random") says which patches of the anchor are left out, `mask_ratio` how many; the small crops
    are whole. `power`: 0 is MSN, all prototypes are to be used alike; above 0 it is PMSN, whose prototypes' use is to
    follow the power law k^-power (0.25), for data of unequally many images a concept.

    The prototypes are not to be decayed: config.optimizer.exempt names them. In the authors' code they have no part in
    the norm that the gradient is clipped by, as they have here.
    The teacher's decay goes from `decay` in a straight line towards 1, where it would be after `decay_stretch` runs.

    Source: Assran et al. 2022, arXiv:2204.07141, section 3; PMSN: Assran et al. 2022, arXiv:2210.07277.
    """

    backbone: nn.Module
    run: _common.Run
    focal_views: int = 10
    mask_ratio: float = 0.15  # ViT-S; 0.3 for B, 0.7 for L
    projector: tuple[int, ...] = (2048, 2048, 256)
    prototypes: int = 1024
    temperature: float = 0.1
    sharpen: float = 0.25  # the target's temperature over the anchors'
    iterations: int = 3  # Sinkhorn's, of the targets
    me_max: float = 1.0
    power: float = 0.0
    decay: float = 0.996
    decay_stretch: float = 1.25

    masked: ClassVar[tuple[str, ...]] = ("anchor",)

    def __post_init__(self):
        _tokens.check_vit(self)
        _common.check_positive(self, "prototypes", "temperature", "sharpen", "iterations")
        _common.check_share(self, "decay", "sharpen")
        for name in ("focal_views", "me_max", "power"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0.0 <= self.mask_ratio < 1.0:
            raise ValueError(f"mask_ratio must be in [0, 1), got {self.mask_ratio}")
        if self.decay_stretch < 1.0:
            raise ValueError(f"decay_stretch must be at least 1, got {self.decay_stretch}")

    @property
    def views(self) -> tuple[str, ...]:
        return ("target", "anchor", *("focal",) * self.focal_views)

    @property
    def networks(self) -> dict[str, nn.Module]:
        projector = MLP(
            self.projector,
            activation="gelu",
            hidden_bias=True,
            output_bias=True,
            kernel_init=nn.initializers.normal(0.02),
        )
        return {"backbone": self.backbone, "projector": projector}

    @property
    def chance_level(self) -> float:
        """Of assignments that are all uniform."""
        logs = [-self.power * math.log(k) for k in range(1, self.prototypes + 1)]
        log_prior = sum(logs) / len(logs) - math.log(sum(map(math.exp, logs)))  # its mean
        return math.log(self.prototypes) - self.me_max * (log_prior + math.log(self.prototypes))

    def init(self, rng, images):
        rng_networks, rng_prototypes, rng_patches = jax.random.split(rng, 3)
        params, batch_stats = _common.init(self.networks, rng_networks, images)
        embed = params["backbone"]["patch_embed"]["proj"]  # the authors': He's, without a bias
        he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        embed["kernel"] = he(rng_patches, embed["kernel"].shape)
        embed["bias"] = jnp.zeros_like(embed["bias"])
        teacher = _common.make_teacher(self.networks, params, batch_stats)
        dim = self.projector[-1]
        params["prototypes"] = jax.random.uniform(
            rng_prototypes, (self.prototypes, dim), minval=-(dim**-0.5), maxval=dim**-0.5
        )
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        target, anchor, *focal = batch["views"]
        keep = _tokens.unmasked(batch["masks"][0], self.mask_ratio)
        rng_anchor, rng_focal = jax.random.split(rng)
        student = {"params": params, "batch_stats": state["batch_stats"]}
        z, student = self._project(self.backbone, student, [anchor], axis_name, keep=[keep], rng=rng_anchor)
        anchors = z.reshape(-1, z.shape[-1])
        if focal:
            z_focal, student = self._project(self.backbone, student, focal, axis_name, rng=rng_focal)
            anchors = jnp.concatenate([anchors, z_focal.reshape(-1, z.shape[-1])])
        backbone = _common.without_drop_path(self.backbone)
        z_target, teacher = jax.lax.stop_gradient(self._project(backbone, state["teacher"], [target], axis_name))
        loss = losses.pmsn(
            anchors,
            z_target[0],
            params["prototypes"],
            temperature=self.temperature,
            sharpen=self.sharpen,
            iterations=self.iterations,
            me_max=self.me_max,
            power=self.power,
            axis_name=axis_name,
        )
        state = {"batch_stats": student["batch_stats"], "teacher": teacher}
        return loss, (state, {"loss": loss, "embeddings": jnp.concatenate([z, z_target])})

    def _project(self, backbone, variables, views, axis_name, **options):
        """Views of one size -> (z [views, batch, dim], the variables with new BatchNorm statistics)."""
        params, batch_stats = variables["params"], variables["batch_stats"]
        h, _ = _tokens.encode(backbone, params["backbone"], views, axis_name=axis_name, **options)
        z, of_projector = _common.train_apply(
            self.networks["projector"], params["projector"], batch_stats["projector"], h, axis_name=axis_name
        )
        return z, {**variables, "batch_stats": {**batch_stats, "projector": of_projector}}

    def update(self, params: Any, state: Any, step: Any) -> Any:
        decay = optim.linear(self.decay, 1.0, step, round(self.run.steps * self.decay_stretch))
        return {**state, "teacher": _common.move_teacher(state["teacher"], params, decay)}

    backbone_variables = _common.teacher_backbone
    features = _common.features
