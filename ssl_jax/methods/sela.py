"""SeLa."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import losses
from ssl_jax.keys import COUNT, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.methods.toolkit import banks, memories, prototype_heads, transport
from ssl_jax.models.heads import MLP, torch_init
from ssl_jax.ops import shards


@dataclasses.dataclass(frozen=True)
class SeLa(Base):
    """Classifies images by labels of its own, which share the whole data set out equally among the classes.

    Each head is a linear classifier on the backbone's features. Optimal transport (toolkit/transport.py) makes the
    labels of each head from its class probabilities of all images. It does so before step 1, and then `relabelings` - 1
    times in a run, after (i / (relabelings - 1))^spacing of the steps.

    The authors compute the features of all images anew for each labeling, in training mode with augmentation. Here a
    memory has those of the last step that saw the image. A pass over all images before training (`prepare`) fills it.
    An image that the memory has not seen has no label: the last images of an epoch may not fill a batch. The
    memory has 10 GB for ImageNet and a ResNet-50, on every device. With `shard_state` each device keeps its own images'
    rows, and the transport is divided over the devices.

    Source: Asano, Rupprecht & Vedaldi 2019, arXiv:1911.05371, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    clusters: Annotated[tuple[int, ...], Range(2), "Number of classes of each head."] = (3000,) * 10
    strength: Annotated[
        float, POSITIVE, "The paper's lambda: larger values keep labels closer to the predictions. 10 for CIFAR."
    ] = 25.0
    iterations: Annotated[int, COUNT, "Iterations of the transport, at most."] = 50
    tolerance: Annotated[float, POSITIVE, "Change of the images' weights at which the transport stops."] = 0.1
    relabelings: Annotated[int, Range(2), "How often labels are made in a run, with the time before step 1."] = 100
    spacing: Annotated[
        int, COUNT, "1: labelings are evenly spaced, as for CIFAR. 2: at first they are closer, as for ImageNet."
    ] = 2

    views = ("view",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.clusters:
            raise ValueError("clusters must have a number for each head, got none")
        memories.check_clusters(self.schedule, max(self.clusters))

    @property
    def networks(self) -> toolkit.Networks:
        # All heads are one linear layer: their classes side by side.
        classifier = MLP((sum(self.clusters),), output_bias=True, kernel_init=torch_init)
        return {"backbone": self.backbone, "classifier": classifier}

    @property
    def preparing_steps(self) -> int:
        return self.schedule.steps_per_epoch

    @property
    def banks(self) -> Mapping[str, int]:
        return memories.named(self.schedule, "memory", "labels")

    @property
    def chance_level(self) -> float:
        return sum(math.log(count) for count in self.clusters) / len(self.clusters)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {
            "batch_stats": batch_stats,
            "memory": memories.create_features(self.schedule.num_images, self.backbone.dim),
            "labels": jnp.full((len(self.clusters), memories.bank_rows(self.schedule.num_images)), -1, jnp.int32),
        }

    def by_head(self, x: Float[Array, "*batch classes"]) -> list[Float[Array, "*batch _"]]:
        """Of all classes side by side, those of each head."""
        return jnp.split(x, [*itertools.accumulate(self.clusters[:-1])], axis=-1)

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward(
            self.networks, params, state["batch_stats"], batch["views"][0], axis_name=axis_name, rng=rng
        )
        h, labels = outputs["backbone"], banks.take(state["labels"], batch["index"], axis=1)
        heads = [
            losses.pseudo_label_cross_entropy(logits[None], label, temperature=1.0, axis_name=axis_name)
            for logits, label in zip(self.by_head(outputs["classifier"]), labels, strict=True)
        ]
        memory = memories.keep_features(state["memory"], batch["index"], h, axis_name)
        state = {**state, "batch_stats": batch_stats, "memory": memory}
        return Output(sum(heads, start=jnp.zeros(())) / len(heads), state, {}, embeddings=h[None])

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        output = self.loss(params, state, batch, rng, axis_name=axis_name)
        return output.state, output.embeddings

    def prepared(self, params: Params, state: State) -> State:
        return self._relabel(params, state)

    def relabels(self, step: Int[Array, "*steps"]) -> Bool[Array, "*steps"]:
        """Whether labels are made anew after step number `step`, from 1 on."""
        # The first time is before step 1.
        return (step > 1) & transport.is_time(step, self.relabelings, self.schedule.steps, self.spacing)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return lax.cond(self.relabels(step), self._relabel, lambda _, state: state, params, state)

    def _relabel(self, params: Params, state: State) -> State:
        layer = params["classifier"]["Dense_0"]
        columns = jnp.concatenate([layer["kernel"], layer["bias"][None]])  # of each class its weights, then its bias
        heads = [head.T for head in self.by_head(columns)]
        return shards.on_devices(self._labeled, state, ("memory", "labels"), heads)

    def _labeled(self, state: State, heads: Sequence[Float[Array, "_ columns"]], *, axis_name: str | None) -> State:
        memory = state["memory"]

        def relabel(_: int | Int[Array, ""], head: Float[Array, "count columns"]) -> tuple[Array, Array]:
            return transport.balanced_labels(
                memory["rows"],
                head[:, :-1],
                bias=head[:, -1],
                temperature=1.0,
                strength=self.strength,
                iterations=self.iterations,
                tolerance=self.tolerance,
                valid=memory["seen"],
                axis_name=axis_name,
            )

        labels = [found for found, _ in prototype_heads.of_heads(relabel, heads)]
        return {"memory": memory, "labels": jnp.stack(labels).astype(jnp.int32)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        return memories.feature_traffic(self.schedule, self.backbone.dim)
