"""MSN and PMSN."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic, Variables
from ssl_jax.methods.toolkit import masking, transport
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.heads import MLP


@dataclasses.dataclass(frozen=True)
class MSN(Base):
    """Assigns anchors to prototypes as the teacher assigns a whole view of the image, the target.

    The anchors are a view with some patches left out, and small crops, which are whole. `config.mask` (kind "random")
    says which patches are left out, `mask_ratio` how many. MSN draws the use of the prototypes towards a uniform one.
    PMSN is for data with unequal numbers of images of each concept, and draws it towards the power law k^-power.

    The prototypes must not be decayed: config.optimizer.exempt names them. Here the norm by which the gradient is
    clipped includes them; in the authors' code it does not.

    Source: Assran et al. 2022, arXiv:2204.07141, section 3; PMSN: Assran et al. 2022, arXiv:2210.07277.
    """

    backbone: nn.Module
    schedule: Schedule
    focal_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image."] = 10
    mask_ratio: Annotated[
        float,
        Range(0.0, 1.0, below=True),
        "Share of the anchor's patches that are left out: 0.15 for ViT-S, 0.3 for B, 0.7 for L.",
    ] = 0.15
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (2048, 2048, 256)
    prototypes: Annotated[int, COUNT, "Number of prototypes."] = 1024
    temperature: Annotated[float, POSITIVE, "Softmax temperature of the anchors' assignments."] = 0.1
    sharpen: Annotated[
        float, Range(0.0, 1.0, above=True), "Temperature of the target, as a share of the anchors' temperature."
    ] = 0.25
    iterations: Annotated[int, COUNT, "Sinkhorn iterations for the targets."] = 3
    me_max: Annotated[float, NOT_NEGATIVE, "Weight of the term for the use of the prototypes."] = 1.0
    power: Annotated[
        float, NOT_NEGATIVE, "Exponent of the prototypes' use, k^-power: 0 is MSN, above 0 it is PMSN (0.25)."
    ] = 0.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start. It grows in a straight line towards 1."] = 0.996
    decay_stretch: Annotated[
        float, Range(1.0), "The teacher's decay would reach 1 after this many times the steps of the run."
    ] = 1.25

    masked = ("anchor",)

    def __post_init__(self) -> None:
        super().__post_init__()
        masking.check_vit(self)

    @property
    def views(self) -> tuple[str, ...]:
        return ("target", "anchor", *("focal",) * self.focal_views)

    @property
    def networks(self) -> toolkit.Networks:
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
        """The loss of assignments that are all uniform."""
        logs = [-self.power * math.log(k) for k in range(1, self.prototypes + 1)]
        log_prior = sum(logs) / len(logs) - math.log(sum(map(math.exp, logs)))  # the mean over prototypes
        return math.log(self.prototypes) - self.me_max * (log_prior + math.log(self.prototypes))

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_prototypes, rng_patches = jax.random.split(rng, 3)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        embed = params["backbone"]["patch_embed"]["proj"]  # the authors draw it by He's rule, with a bias of 0
        he = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        embed["kernel"] = he(rng_patches, embed["kernel"].shape)
        embed["bias"] = jnp.zeros_like(embed["bias"])
        teacher = toolkit.make_teacher(self.networks, params, batch_stats)
        dim = self.projector[-1]
        params["prototypes"] = jax.random.uniform(
            rng_prototypes, (self.prototypes, dim), minval=-(dim**-0.5), maxval=dim**-0.5
        )
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        target, anchor, *focal = batch["views"]
        keep = masking.unmasked(batch["masks"][0], self.mask_ratio)
        rng_anchor, rng_focal = jax.random.split(rng)
        student = {"params": params, "batch_stats": state["batch_stats"]}
        z, student = self._project(self.backbone, student, [anchor], axis_name, keep=[keep], rng=rng_anchor)
        anchors = z.reshape(-1, z.shape[-1])
        if focal:
            z_focal, student = self._project(self.backbone, student, focal, axis_name, rng=rng_focal)
            anchors = jnp.concatenate([anchors, z_focal.reshape(-1, z.shape[-1])])
        backbone = without_noise(self.backbone)
        z_target, teacher = lax.stop_gradient(self._project(backbone, state["teacher"], [target], axis_name))
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
        return Output(loss, state, {}, embeddings=jnp.concatenate([z, z_target]))

    def _project(
        self,
        backbone: nn.Module,
        variables: Variables,
        views: Sequence[Float[Array, "batch _ _ channels"]],
        axis_name: str | None,
        *,
        keep: Sequence[Int[Array, "batch kept"]] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> tuple[Float[Array, "views batch dim"], Variables]:
        """Views of one size -> (their projections, the variables with new BatchNorm statistics)."""
        params, batch_stats = variables["params"], variables["batch_stats"]
        h, _ = masking.encode(backbone, params["backbone"], views, keep=keep, axis_name=axis_name, rng=rng)
        z, of_projector = toolkit.train_apply(
            self.networks["projector"], params["projector"], batch_stats["projector"], h, axis_name=axis_name
        )
        return z, {**variables, "batch_stats": {**batch_stats, "projector": of_projector}}

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.linear(self.decay, 1.0, step, round(self.schedule.steps * self.decay_stretch))
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    backbone_variables = toolkit.teacher_backbone

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Sinkhorn's iterations for the targets are over the global batch. The mean of all anchors' assignments is
        # summed over the devices, and so is its gradient. The anchor and the small crops pass the projector apart.
        reduced = transport.sinkhorn_bytes(self.prototypes, self.iterations) + 4 * 2 * self.prototypes
        return Traffic(passes=2 if self.focal_views else 1, teacher_passes=1, reduced=reduced)
