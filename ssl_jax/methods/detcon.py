"""DetCon."""

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.places import map_positions
from ssl_jax.methods.toolkit.segments import at_places, segment
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.heads import MLP

HEADS = ("projector", "predictor")


@dataclasses.dataclass(frozen=True)
class DetCon(Base):
    """Contrasts segments of images, with BYOL's networks and features averaged over a segment (DetCon-B).

    For each view, `segments` of the segments that it shows are drawn, with replacement. The mean of the feature map
    over a segment's positions is projected and predicted. `losses.detcon` has a prediction find the teacher's
    projection of the same segment in the other view, among all segments of all images. For detection and segmentation.

    The segments are not the paper's. The paper segments each image beforehand (Felzenszwalb & Huttenlocher 2004, by
    scikit-image), and crops the masks like the views. Here a third view, "whole", shows the whole image, undistorted.
    Its pixels are clustered on the device by color and place, from a grid of `grid` x `grid` squares on. With a large
    `place_weight` the squares stay as they are: the paper's spatial heuristic. A position of a map belongs to the
    segment of the pixel nearest to its middle; in the paper, to the segment with the most pixels. The third view does
    not pass the network.

    Source: Henaff et al. 2021, arXiv:2103.10957, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the layers of a segment's projector."] = (4096, 256)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers."] = (4096, 256)
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.1
    segments: Annotated[int, COUNT, "Segments that are drawn of each view."] = 16
    grid: Annotated[int, COUNT, "An image has at most grid * grid segments."] = 5
    place_weight: Annotated[
        float,
        NOT_NEGATIVE,
        "Weight of a pixel's place, from -1 to 1 across the image, beside its normalized color; 1000 gives the grid.",
    ] = 1.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start; it goes to 1 by half a cosine."] = 0.996

    views = ("view1", "view2", "whole")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        toolkit.check_feature_map(self)

    @property
    def networks(self) -> toolkit.Networks:
        return {
            "backbone": self.backbone,
            "projector": MLP(self.projector, hidden_bias=True),
            "predictor": MLP(self.predictor, hidden_bias=True),
        }

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, rng_heads = jax.random.split(rng)
        params, batch_stats, h = toolkit.init_map(self.backbone, rng_backbone, images)
        heads, stats = toolkit.init(toolkit.select(self.networks, HEADS), rng_heads, jnp.mean(h, axis=(1, 2)))
        params, batch_stats = params | heads, batch_stats | stats
        teacher = toolkit.make_teacher(toolkit.select(self.networks, ("backbone", "projector")), params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        *views, whole = batch["views"]
        *boxes, whole_box = batch["boxes"]
        found = segment(whole, self.grid, self.place_weight).reshape(len(whole), -1)
        pixels = map_positions(whole_box, (whole.shape[1], whole.shape[2]), whole.shape[2] / whole.shape[1])
        batch_stats, teacher = state["batch_stats"], state["teacher"]
        ids: list[Array] = []
        online: list[dict[str, Array]] = []
        targets: list[Array] = []
        for number, (x, box) in enumerate(zip(views, boxes, strict=True)):
            rng_depth, rng_draw = jax.random.split(jax.random.fold_in(rng, number))
            h, batch_stats = toolkit.forward_map(
                self.backbone, params, batch_stats, x, axis_name=axis_name, rng=rng_depth
            )
            of_teacher, statistics = toolkit.forward_map(
                without_noise(self.backbone), teacher["params"], teacher["batch_stats"], x, axis_name=axis_name
            )
            places = map_positions(box, (h.shape[1], h.shape[2]), x.shape[2] / x.shape[1])
            segments = at_places(found, pixels, places)
            drawn = self.draw(segments, ops.example_keys(rng_draw, batch["index"]))
            ids.append(drawn)
            outputs, batch_stats = toolkit.forward(
                toolkit.select(self.networks, HEADS), params, batch_stats, pool(h, segments, drawn), axis_name=axis_name
            )
            online.append(outputs)
            made, statistics = toolkit.forward(
                toolkit.select(self.networks, ("projector",)),
                teacher["params"],
                statistics,
                pool(of_teacher, segments, drawn),
                axis_name=axis_name,
            )
            targets.append(lax.stop_gradient(made["projector"]))
            teacher = {**teacher, "batch_stats": lax.stop_gradient(statistics)}
        loss = losses.detcon(
            (online[0]["predictor"], online[1]["predictor"]),
            (targets[0], targets[1]),
            (ids[0], ids[1]),
            temperature=self.temperature,
            axis_name=axis_name,
        )
        in_both = jnp.any(ids[0][:, :, None] == ids[1][:, None], axis=-1)
        metrics = {"segments_in_both": jnp.mean(in_both.astype(jnp.float32))}
        embeddings = jnp.stack([outputs["projector"][:, 0] for outputs in online])
        return Output(loss, {"batch_stats": batch_stats, "teacher": teacher}, metrics, embeddings=embeddings)

    def draw(self, segments: Int[Array, "batch positions"], keys: Key[Array, " batch"]) -> Int[Array, "batch drawn"]:
        """`self.segments` of the segments that each map shows, all with the same probability, with replacement."""
        shown = jnp.any(segments[..., None] == jnp.arange(self.grid**2), axis=1)  # [batch, segments]
        scores = jnp.where(shown, 0.0, -jnp.inf)
        one: Any = lambda key, row: jax.random.categorical(key, row, shape=(self.segments,))  # noqa: E731
        return jax.vmap(one)(keys, scores)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The targets of both views are gathered for each view's predictions. They have no gradient.
        rows = toolkit.row_bytes(self.schedule.batch_size * self.segments, self.projector[-1])
        return Traffic(passes=2, teacher_passes=2, gathered=4 * rows)


def pool(
    h: Float[Array, "batch rows columns dim"],
    segments: Int[Array, "batch positions"],
    drawn: Int[Array, "batch drawn"],
) -> Float[Array, "batch drawn dim"]:
    """The mean of a map over the positions of each drawn segment."""
    members = (drawn[:, :, None] == segments[:, None]).astype(jnp.float32)
    members /= jnp.maximum(jnp.sum(members, axis=-1, keepdims=True), 1.0)
    return jnp.einsum("bnp,bpd->bnd", members, h.reshape(len(h), -1, h.shape[-1]), precision="highest")
