"""All4One."""

import dataclasses
import math
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import memories
from ssl_jax.methods.toolkit.covariance import covariance_bytes
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.models.set_encoder import SetEncoder

CHAIN = ("backbone", "projector", "predictor")


@dataclasses.dataclass(frozen=True)
class All4One(Base):
    """NNCLR, a contrast of neighborhoods as wholes, and features that are not redundant, together.

    A teacher's projection of a view finds its `neighbors` nearest ones, among the teacher's past projections.
    1. As in NNCLR, the nearest one is contrasted with the prediction from the other view.
    2. A small transformer makes one vector, the centroid, of a view's neighbors. It is contrasted with what the
       transformer makes of the other view's neighbors, the last of which gives its place to a second prediction, which
       comes first. Both contrasts are among the images of the batch.
    3. `losses.all4one_features`: each dimension of a projection goes with the same one of the teacher's projection of
       the other view, and with no other one.
    Each part is computed with the views exchanged, too. The teacher's projections of the first view join the queue.

    The authors give the transformer a learning rate of its own, 0.1 where all else has 1.0. Here its gradient is
    multiplied by `transformer_rate`: the same with SGD and with LARC's capped steps, of no effect with Adam.

    Source: Estepa et al. 2023, arXiv:2303.09417, section 3; numbers as in the authors' code, in solo-learn.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projector's layers. BatchNorm follows each, the last one included."
    ] = (2048, 2048, 256)
    predictor: Annotated[tuple[int, ...], COUNT, "Widths of the layers of each of the two predictors."] = (4096, 256)
    temperature: Annotated[float, POSITIVE, "Softmax temperature of the contrast of nearest neighbors."] = 0.2
    centroid_temperature: Annotated[float, POSITIVE, "Softmax temperature of the contrast of centroids."] = 0.1
    neighbors: Annotated[int, Range(2), "Nearest neighbors of a view that the transformer sees."] = 5
    layers: Annotated[int, COUNT, "Layers of the transformer."] = 3
    heads: Annotated[int, COUNT, "Heads of the transformer's attention: a divisor of the projector's last width."] = 8
    dropout: Annotated[float, Range(0.0, 1.0, below=True), "Dropout in the transformer."] = 0.1
    transformer_rate: Annotated[float, SHARE, "What the transformer's gradient is multiplied by."] = 0.1
    neighbor_weight: Annotated[float, NOT_NEGATIVE, "Weight of the contrast of nearest neighbors."] = 0.5
    centroid_weight: Annotated[float, NOT_NEGATIVE, "Weight of the contrast of centroids."] = 0.5
    feature_weight: Annotated[float, NOT_NEGATIVE, "Weight of the loss of features."] = 5.0
    decay: Annotated[float, SHARE, "The teacher's decay at the start; it goes to 1 by half a cosine."] = 0.99
    queue_size: Annotated[int, COUNT, "Projections in the queue: a multiple of the batch size."] = 98_304

    views = ("view1", "view2")

    def __post_init__(self) -> None:
        super().__post_init__()
        toolkit.check_predictor(self)
        toolkit.check_queue(self.schedule, self.queue_size, of_negatives=False)
        if self.neighbors > self.queue_size:
            raise ValueError(f"neighbors={self.neighbors} are more than queue_size={self.queue_size}; use fewer")
        if self.projector[-1] % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide the projector's last width, {self.projector[-1]}; use a divisor"
            )

    @property
    def networks(self) -> toolkit.Networks:
        predictor = MLP(self.predictor, hidden_bias=True, output_bias=True, kernel_init=torch_init)
        return {
            **self.teacher_networks,
            "predictor": predictor,
            "centroid_predictor": predictor,
            "transformer": SetEncoder(self.layers, self.heads, self.dropout),
        }

    @property
    def teacher_networks(self) -> toolkit.Networks:
        projector = MLP(self.projector, hidden_bias=True, output_bias=True, output_norm="full", kernel_init=torch_init)
        return {"backbone": self.backbone, "projector": projector}

    @property
    def chance_level(self) -> float:
        """Where all embeddings are equal, so are all dimensions' columns, up to their signs: the features' loss is 1/2.

        Either contrast then is one of as many equal candidates as there are images.
        """
        contrasts = (self.neighbor_weight + self.centroid_weight) * math.log(self.schedule.batch_size)
        return contrasts + self.feature_weight / 2

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_chain, rng_predictor, rng_transformer, rng_queue = jax.random.split(rng, 4)
        networks, dim = self.networks, self.projector[-1]
        params, batch_stats = toolkit.init(toolkit.select(networks, CHAIN), rng_chain, images)
        for name, key, shape in (
            ("centroid_predictor", rng_predictor, (1, dim)),
            ("transformer", rng_transformer, (1, 1, self.neighbors, dim)),
        ):
            made, stats = toolkit.init({name: networks[name]}, key, jnp.zeros(shape))
            params, batch_stats = params | made, batch_stats | stats
        return params, {
            "batch_stats": batch_stats,
            "teacher": toolkit.make_teacher(self.teacher_networks, params, batch_stats),
            "queue": memories.create(rng_queue, self.queue_size, dim),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        rng_views, rng_transformer = jax.random.split(rng)
        networks, queue = self.networks, state["queue"]
        outputs, batch_stats = toolkit.forward_views(
            toolkit.select(networks, CHAIN),
            params,
            state["batch_stats"],
            batch["views"],
            axis_name=axis_name,
            rng=rng_views,
            together=False,
        )
        targets, teacher = toolkit.forward_teacher(
            self.teacher_networks, state["teacher"], batch["views"], axis_name=axis_name, together=False
        )
        z, p, t = outputs["projector"], outputs["predictor"], targets["projector"]
        found = [memories.several_nearest(one, queue["rows"], self.neighbors) for one in t]
        mixed: list[Array] = []
        for one, neighbors in zip(z, found, strict=True):
            first, batch_stats["centroid_predictor"] = toolkit.train_apply(
                networks["centroid_predictor"],
                params["centroid_predictor"],
                batch_stats["centroid_predictor"],
                one,
                axis_name=axis_name,
            )
            mixed.append(jnp.concatenate([first[:, None], neighbors[:, :-1]], axis=1))
        centroids, _ = toolkit.train_apply(
            networks["transformer"],
            _slowed(params["transformer"], self.transformer_rate),
            {},
            jnp.stack([*found, *mixed], axis=1),
            axis_name=axis_name,
            rng=rng_transformer,
        )
        of_found, of_mixed = centroids[:, :2], centroids[:, 2:]

        def contrast(query: Array, key: Array, temperature: float) -> Float[Array, ""]:
            return losses.info_nce(query, key, temperature=temperature, axis_name=axis_name) / 2

        other = ((0, 1), (1, 0))
        terms = {
            "neighbor_loss": sum(contrast(found[i][:, 0], p[j], self.temperature) for i, j in other),
            "centroid_loss": sum(contrast(of_found[:, i], of_mixed[:, j], self.centroid_temperature) for i, j in other),
            "feature_loss": losses.all4one_features(*z, *t, axis_name=axis_name),
        }
        weights = (self.neighbor_weight, self.centroid_weight, self.feature_weight)
        loss = sum((w * term for w, term in zip(weights, terms.values(), strict=True)), start=jnp.zeros(()))
        state = {"batch_stats": batch_stats, "teacher": teacher, "queue": memories.push(queue, t[0], axis_name)}
        return Output(loss, state, terms, embeddings=z)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        decay = optim.cosine(self.decay, 1.0, step, self.schedule.steps)
        return {**state, "teacher": toolkit.move_teacher(state["teacher"], params, decay)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Two contrasts in two directions gather their keys, and scatter their gradient. The queue takes the projections
        # of one view. Two correlations of features are summed over devices.
        dim = self.projector[-1]
        rows = toolkit.row_bytes(self.schedule.batch_size, dim)
        return Traffic(
            passes=2, teacher_passes=2, reduced=covariance_bytes(dim, times=2), gathered=5 * rows, scattered=4 * rows
        )


def _slowed(params: Any, rate: float) -> Any:
    """The same numbers, whose gradient is multiplied by `rate`."""
    return jax.tree.map(lambda p: rate * p + (1.0 - rate) * lax.stop_gradient(p), params)
