"""PixPro."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.places import near_positions
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class PixPro(Base):
    """Each position of a feature map agrees with a teacher's positions at the same place, in the other view.

    The network's projection of a position is smoothed first: it becomes the sum of all positions' values of its view,
    weighted by how similar their projections are to its own (pixel propagation). The teacher's projections are not
    smoothed. Two positions are at the same place if their middles are less than `reach` diagonals of a cell apart in
    the image. Views that do not overlap teach nothing: see the metric `overlapping`. For detection and segmentation.

    loss = the sum of `losses.pixpro` in both directions, from -4 to 4. Each view passes by itself. The authors' loss of
    whole images, whose weight is 0 in their commands, is left out.

    Source: Xie et al. 2020, arXiv:2011.10043, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the layers of each position's projector."] = (4096, 256)
    transform_layers: Annotated[
        int, NOT_NEGATIVE, "Linear layers between a projection and its value; 0: the value is the projection."
    ] = 1
    sharpness: Annotated[float, Range(1.0), "Power of the similarities, the paper's gamma."] = 2.0
    reach: Annotated[
        float, POSITIVE, "The least distance of positions that are no pair, in diagonals of a cell of the map."
    ] = 0.7
    decay: Annotated[float, SHARE, "The teacher's decay at the start; it goes to 1 by half a cosine."] = 0.99

    views = ("view1", "view2")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_feature_map(self)

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, hidden_bias=True, output_bias=True, kernel_init=torch_init),
            "propagation": Propagation(self.transform_layers, self.sharpness),
        }

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, rng_heads = jax.random.split(rng)
        params, batch_stats, h = toolkit.init_map(self.backbone, rng_backbone, images)
        heads, stats = toolkit.init(toolkit.select(self.networks, ("projector", "propagation")), rng_heads, h)
        params, batch_stats = params | heads, batch_stats | stats
        teacher = toolkit.make_teacher(toolkit.select(self.networks, ("backbone", "projector")), params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        batch_stats, teacher = state["batch_stats"], state["teacher"]
        online: list[dict[str, Array]] = []
        targets: list[Array] = []
        for number, x in enumerate(batch["views"]):
            outputs, batch_stats = self.forward(
                self.backbone, params, batch_stats, x, axis_name, jax.random.fold_in(rng, number)
            )
            online.append(outputs)
            found, statistics = lax.stop_gradient(
                self.forward(
                    without_noise(self.backbone), teacher["params"], teacher["batch_stats"], x, axis_name, None
                )
            )
            targets.append(found["projector"])
            teacher = {**teacher, "batch_stats": statistics}

        def in_rows(z: Array) -> Float[Array, "batch positions dim"]:
            return z.reshape(len(z), -1, z.shape[-1])

        (z1, z2), (x1, x2), (boxes1, boxes2) = targets, batch["views"], batch["boxes"]
        grids = (z1.shape[1], z1.shape[2]), (z2.shape[1], z2.shape[2])
        aspects = x1.shape[2] / x1.shape[1], x2.shape[2] / x2.shape[1]
        near = near_positions((boxes1, boxes2), grids, aspects, self.reach)
        loss = losses.pixpro(online[0]["propagation"], in_rows(z2), near, axis_name=axis_name)
        loss += losses.pixpro(online[1]["propagation"], in_rows(z1), near.swapaxes(1, 2), axis_name=axis_name)
        metrics = {"overlapping": jnp.mean(jnp.any(near, axis=(1, 2)).astype(jnp.float32))}
        embeddings = jnp.stack([jnp.mean(in_rows(outputs["projector"]), axis=1) for outputs in online])
        return Output(loss, {"batch_stats": batch_stats, "teacher": teacher}, metrics, embeddings=embeddings)

    def forward(
        self,
        backbone: nn.Module,
        params: Params,
        batch_stats: State,
        images: Float[Array, "batch height width channels"],
        axis_name: str | None,
        rng: Key[Array, ""] | None,
    ) -> tuple[dict[str, Float[Array, "batch ..."]], dict[str, Any]]:
        """(outputs, new batch_stats) in training mode, of the networks that `params` has.

        outputs: "projector" [batch, rows, columns, dim]; "propagation" [batch, positions, dim].
        """
        h, batch_stats = toolkit.forward_map(backbone, params, batch_stats, images, axis_name=axis_name, rng=rng)
        heads = {name: module for name, module in self.networks.items() if name in params and name != "backbone"}
        return toolkit.forward(heads, params, batch_stats, h, axis_name=axis_name)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return Traffic(passes=2, teacher_passes=2)


class Propagation(nn.Module):
    """Maps z [batch, rows, columns, dim] -> y [batch, positions, dim]: a position's y has all positions' values.

    y_s = sum_t max(0, cos(z_s, z_t))^sharpness g(z_t) / |g(z_t)|. g: `layers` linear layers, with BatchNorm and ReLU
    between them.

    Source: Xie et al. 2020, arXiv:2011.10043, eq. 3-4; values have unit length as in the authors' code.
    """

    layers: int
    sharpness: float

    @nn.compact
    def __call__(
        self, z: Float[Array, "batch rows columns dim"], train: bool = False, axis_name: str | None = None
    ) -> Float[Array, "batch positions dim"]:
        z = z.reshape(len(z), -1, z.shape[-1])
        value = z
        if self.layers:
            widths = (z.shape[-1],) * self.layers
            value = MLP(widths, hidden_bias=True, output_bias=True, kernel_init=torch_init)(z, train, axis_name)
        unit = ops.normalize(z)
        similarity = nn.relu(jnp.einsum("bsd,btd->bst", unit, unit, precision="highest")) ** self.sharpness
        return jnp.einsum("bst,btd->bsd", similarity, ops.normalize(value), precision="highest")
