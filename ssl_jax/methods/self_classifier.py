"""Self-Classifier."""

import dataclasses
from typing import Annotated, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax import losses, ops
from ssl_jax.keys import COUNT, POSITIVE, Range
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State, Traffic
from ssl_jax.models.heads import MLP, torch_init


@dataclasses.dataclass(frozen=True)
class SelfClassifier(Base):
    """Predicts, from one view, the class of the other, where every class has the same share of the batch.

    The classes are those of several classifiers, which are fixed from the start: rows of a random matrix with
    orthonormal columns (rows, if the classes are no more than the dimensions), scaled to unit length. So nothing but
    the network learns. That each class has its share keeps the images from falling into one class. There is no
    teacher, and no memory.

    Source: Amrani, Karlinsky & Bronstein 2021, arXiv:2103.10994, section 3, and the authors' code.
    """

    backbone: nn.Module
    schedule: Schedule
    projector: Annotated[tuple[int, ...], COUNT, "Widths of the projector's layers."] = (4096, 4096, 128)
    classes: Annotated[int, Range(2), "Classes of each classifier."] = 1000
    classifiers: Annotated[int, COUNT, "Number of classifiers."] = 30
    temperature: Annotated[float, POSITIVE, "Temperature of the softmax over classes and of that over images."] = 0.1

    views = ("view", "view")

    @property
    def networks(self) -> toolkit.Networks:
        projector = MLP(
            self.projector, activation="leaky_relu", hidden_bias=True, output_bias=True, kernel_init=torch_init
        )
        return {"backbone": self.backbone, "projector": projector}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_networks, rng_classes = jax.random.split(rng)
        params, batch_stats = toolkit.init(self.networks, rng_networks, images)
        dim = self.projector[-1]
        normal = jax.random.normal(rng_classes, (self.classifiers, max(self.classes, dim), min(self.classes, dim)))
        columns = ops.map_matrices(_orthonormal_columns, normal)
        prototypes = columns if self.classes > dim else columns.swapaxes(1, 2)
        return params, {"batch_stats": batch_stats, "prototypes": ops.normalize(prototypes)}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks, params, state["batch_stats"], batch["views"], axis_name=axis_name, rng=rng, together=False
        )
        z = outputs["projector"]
        scores = jnp.einsum("vbd,hcd->vhbc", ops.normalize(z), state["prototypes"], precision="highest")
        loss = losses.self_classifier(scores[0], scores[1], temperature=self.temperature, axis_name=axis_name)
        return Output(loss, {**state, "batch_stats": batch_stats}, {}, embeddings=z)

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # The softmax over the batch sends, for each class of each view, its largest score, its sum and the sum's
        # gradient; the largest is computed twice.
        return Traffic(passes=2, reduced=2 * 4 * 4 * self.classifiers * self.classes)


def _orthonormal_columns(matrix: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    return cast(Array, jnp.linalg.qr(matrix)[0])
