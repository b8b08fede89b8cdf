"""ReLIC v2."""

import dataclasses
import math
from typing import Annotated

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, ops, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit.places import map_positions
from ssl_jax.methods.toolkit.segments import background, in_view, segment
from ssl_jax.models.heads import MLP

Image = Float[Array, "batch height width channels"]


@dataclasses.dataclass(frozen=True)
class ReLICv2(Base):
    """Each crop finds its image among a few in what a slowly moving teacher sees, alike from both sides.

    `losses.relic` compares every crop with every large crop as the teacher sees it, also with the same one. Its
    negatives are `negatives` other images of the batch, which are drawn anew in each step. Its divergence asks that a
    crop and the teacher's crop give the images the same probabilities. Each crop passes by itself.

    In a large crop the background is removed with probability `mask_probability`. A last view, "whole", shows the whole
    image, undistorted; it does not pass the network. The paper finds the background by a network that it trains without
    labels on what rules of thumb say. Here it is found by such a rule itself: see `segments.background`. The removed
    pixels become 0, the data's mean, after the distortions of the view; in the paper before them.

    ReLIC, the first version (arXiv:2010.07922), is large_views=2, local_views=0, negatives=0, mask_probability=0: the
    config's scale imagenet_r50_v1.

    Source: Tomasev et al. 2022, arXiv:2201.05119, pseudo-code; Mitrovic et al. 2020, arXiv:2010.07922, appendix E.
    """

    backbone: nn.Module
    schedule: Schedule
    large_views: Annotated[int, COUNT, "Large crops, drawn as global1 and global2 by turns. The teacher sees them."] = 4
    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image."] = 2
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (4096, 256)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the predictor's layers; () for none."] = (4096, 256)
    negatives: Annotated[int, NOT_NEGATIVE, "Other images that an image is told from; 0 for all of the batch."] = 10
    temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.2
    invariance: Annotated[float, NOT_NEGATIVE, "Weight of the divergence."] = 1.0
    mask_probability: Annotated[float, SHARE, "Share of large crops without background. Above 0 adds a view."] = 0.1
    grid: Annotated[int, COUNT, "An image has at most grid * grid segments, each background or not."] = 5
    place_weight: Annotated[
        float, NOT_NEGATIVE, "Weight of a pixel's place, from -1 to 1 across the image, beside its normalized color."
    ] = 1.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start; it goes to 1 by half a cosine."] = 0.996

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.predictor:
            toolkit.check_predictor(self)
        others = self.schedule.batch_size - 1
        if self.negatives > others:
            raise ValueError(
                f"negatives={self.negatives} are more than the {others} other images of a batch of "
                f"{self.schedule.batch_size}; use {others} or less, or 0 for all of them"
            )

    @property
    def views(self) -> tuple[str, ...]:
        large = tuple(f"global{1 + number % 2}" for number in range(self.large_views))
        return (*toolkit.with_local(large, self.local_views), *(("whole",) if self.mask_probability else ()))

    @property
    def teacher_networks(self) -> toolkit.Networks:
        return {"backbone": self.backbone, "projector": MLP(self.projector, hidden_bias=True)}

    @property
    def networks(self) -> toolkit.Networks:
        predictor = {"predictor": MLP(self.predictor, hidden_bias=True)} if self.predictor else {}
        return {**self.teacher_networks, **predictor}

    @property
    def chance_level(self) -> float:
        return math.log(1 + self.negatives if self.negatives else self.schedule.batch_size)

    def init(self, rng: Key[Array, ""], images: Image) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        teacher = toolkit.make_teacher(self.teacher_networks, params, batch_stats)
        return params, {"batch_stats": batch_stats, "teacher": teacher}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_networks, rng_negatives, rng_masks = jax.random.split(rng, 3)
        crops = list(batch["views"][: self.large_views + self.local_views])
        if self.mask_probability:
            crops[: self.large_views] = self.without_background(batch, rng_masks)
        online, batch_stats = toolkit.forward_views(
            self.networks,
            params,
            state["batch_stats"],
            crops,
            axis_name=axis_name,
            rng=rng_networks,
            together=False,
        )
        targets, teacher = toolkit.forward_teacher(
            self.teacher_networks, state["teacher"], crops[: self.large_views], axis_name=axis_name, together=False
        )
        loss = losses.relic(
            online["predictor" if self.predictor else "projector"],
            targets["projector"],
            self.draw(rng_negatives, crops[0], axis_name) if self.negatives else None,
            temperature=self.temperature,
            invariance=self.invariance,
            axis_name=axis_name,
        )
        state = {"batch_stats": batch_stats, "teacher": teacher}
        return Output(loss, state, {}, embeddings=online["projector"][: self.large_views])

    def without_background(self, batch: Batch, rng: Key[Array, ""]) -> list[Image]:
        """The large crops, with the background of some set to 0."""
        whole = batch["views"][-1]
        found = background(whole, segment(whole, self.grid, self.place_weight), self.grid**2)
        masked: list[Image] = []
        for number, x in enumerate(batch["views"][: self.large_views]):
            height, width = x.shape[1:3]
            places = map_positions(batch["boxes"][number], (height, width), width / height)
            keys = ops.example_keys(jax.random.fold_in(rng, number), batch["index"])
            chosen = jax.vmap(lambda key: jax.random.bernoulli(key, self.mask_probability))(keys)
            removed = in_view(found, places).reshape(x.shape[:3]) & chosen[:, None, None]
            masked.append(jnp.where(removed[..., None], 0.0, x))
        return masked

    def draw(self, rng: Key[Array, ""], x: Image, axis_name: str | None) -> Int[Array, "batch negatives"]:
        """For each image `negatives` other rows of the global batch: those at random distances, the same for all."""
        rows = ops.num_rows(x, axis_name)
        distances = 1 + jax.random.choice(rng, rows - 1, (self.negatives,), replace=False)
        own = ops.first_row(x, axis_name) + jnp.arange(len(x))
        return (own[:, None] + distances) % rows

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Both sides of each pair of crops are gathered. The teacher's have no gradient.
        crops = self.large_views + self.local_views
        rows = toolkit.row_bytes(self.schedule.batch_size, self.projector[-1])
        return Traffic(
            passes=crops,
            teacher_passes=self.large_views,
            gathered=(crops + self.large_views) * rows,
            scattered=crops * rows,
        )
