"""Distillation from a frozen backbone."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ssl_jax import losses, optim
from ssl_jax.keys import COUNT, NOT_NEGATIVE, SHARE
from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Batch, Output, Params, State, Traffic, Variables
from ssl_jax.methods.toolkit import teachers
from ssl_jax.models import maps
from ssl_jax.models.heads import MLP
from ssl_jax.ops import global_mean

Features = dict[str, Float[Array, "batch ... dim"]]  # "whole" [batch, dim], "places" [batch, rows, columns, dim]
EPS = 1e-6  # added to the deviation of each of the teacher's entries; one that is always 0 stays 0


@dataclasses.dataclass(frozen=True)
class Distill(teachers.Taught):
    """Predicts the features that a frozen teacher, a backbone from a file, has of the same view.

    A projector predicts the features of the whole view. Where both networks have features of places (a ViT's patches,
    a ResNet's map), another projector predicts these, too; the teacher's are resized to the student's grid. Both
    networks see the same crop with the same distortions. The teacher runs in evaluation mode. Small crops of
    multi-crop pass both networks.

    Each entry of the teacher's features is standardized by its running mean and deviation over the large views. A
    deviation moves like a mean. The share of a batch in both goes from 1 by half a cosine to `statistics_rate`.

    The teacher's weights are a constant of the state: no checkpoint has them.

    Source: UNIC, Sariyildiz et al. 2024, arXiv:2408.05088, and the authors' code, with a single teacher, and with a
      projector of the last layer alone. One crop for both networks: Beyer et al. 2021, arXiv:2106.05237, section 3.
    """

    local_views: Annotated[int, NOT_NEGATIVE, "Small crops of each image, beside the large one."] = 0
    projector: Annotated[
        tuple[int, ...], COUNT, "Widths of the projectors' hidden layers. (): projectors are linear."
    ] = (3072,)
    cosine: Annotated[float, NOT_NEGATIVE, "Weight of 1 - cos(prediction, target)."] = 0.5
    smooth_l1: Annotated[float, NOT_NEGATIVE, "Weight of the smooth L1 distance of entries."] = 0.5
    places: Annotated[
        float, NOT_NEGATIVE, "Weight of the features of places, where those of the whole view have 1. 0: none."
    ] = 1.0
    statistics_rate: Annotated[
        float, SHARE, "Share of a batch in the teacher's running mean and deviation, at the end of the run."
    ] = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cosine == self.smooth_l1 == 0:
            raise ValueError("cosine=0 and smooth_l1=0 leave no loss; use cosine=0.5, smooth_l1=0.5")

    @property
    def views(self) -> tuple[str, ...]:
        return toolkit.with_local(("view",), self.local_views)

    @property
    def kinds(self) -> Sequence[str]:
        """What is predicted: "whole", and "places" if both networks have them."""
        both = all(teachers.has_places(module) for module in (self.backbone, self.frozen.model))
        return ("whole", "places") if both and self.places else ("whole",)

    @property
    def head(self) -> MLP:
        widths = (*self.projector, self.frozen.model.dim)
        return MLP(widths, hidden_norm=False, activation="gelu", hidden_bias=True, output_bias=True)

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        rng_backbone, *rngs = jax.random.split(rng, 1 + len(self.kinds))
        params, batch_stats = toolkit.init({"backbone": self.backbone}, rng_backbone, images)
        h = jnp.zeros((1, self.backbone.dim))
        for kind, rng_kind in zip(self.kinds, rngs, strict=True):
            params[kind] = self.head.init(rng_kind, h)["params"]
        dim = self.frozen.model.dim
        return params, {
            "batch_stats": batch_stats,
            **self.constants,
            "statistics": {kind: {"mean": jnp.zeros(dim), "deviation": jnp.ones(dim)} for kind in self.kinds},
            "step": jnp.zeros((), jnp.int32),
        }

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        batch_stats, statistics = state["batch_stats"], state["statistics"]
        rate = optim.cosine(1.0, self.statistics_rate, state["step"], self.schedule.steps)
        total, h, likeness = jnp.zeros(()), None, jnp.zeros(())
        for number, (_, same_size) in enumerate(itertools.groupby(batch["views"], jnp.shape)):
            group = list(same_size)
            # The views of an image lie side by side, as `toolkit.forward_views` has them, and for its reason.
            images = jnp.stack(group, axis=1).reshape(-1, *group[0].shape[1:])
            student, batch_stats = self.student(
                params, batch_stats, images, axis_name=axis_name, rng=jax.random.fold_in(rng, number)
            )
            targets = self.targets(state["teacher"], images)
            if h is None:
                h = student["whole"][:: len(group)]
                large = {kind: target[:: len(group)] for kind, target in targets.items()}
                statistics = {
                    kind: moved_statistics(statistics[kind], large[kind], rate, axis_name) for kind in self.kinds
                }
            for kind, weight in zip(self.kinds, (1.0, self.places), strict=False):
                prediction: Any = self.head.apply({"params": params[kind]}, student[kind])
                target = teachers.resized(targets[kind], student[kind].shape)
                target = (target - statistics[kind]["mean"]) / (statistics[kind]["deviation"] + EPS)
                of_kind = losses.feature_distillation(
                    prediction, target, cosine=self.cosine, smooth_l1=self.smooth_l1, axis_name=axis_name
                )
                total += weight * len(group) * of_kind
                if number == 0 and kind == "whole":
                    likeness = -losses.negative_cosine(prediction, target, axis_name=axis_name)
        loss = total / (len(batch["views"]) * (1.0 + (self.places if "places" in self.kinds else 0.0)))
        state = {**state, "batch_stats": batch_stats, "statistics": statistics}
        assert h is not None  # there is a large view
        return Output(loss, state, {"teacher_cosine": likeness}, embeddings=h[None])

    def student(
        self,
        params: Params,
        batch_stats: State,
        images: Float[Array, "batch height width channels"],
        *,
        axis_name: str | None,
        rng: Key[Array, ""],
    ) -> tuple[Features, State]:
        """(features of each of `kinds` before the projectors, batch_stats with the backbone's new ones)"""
        method = maps.method_of_both(self.backbone) if "places" in self.kinds else "__call__"
        found, new = toolkit.train_apply(
            self.backbone,
            params["backbone"],
            batch_stats["backbone"],
            images,
            axis_name=axis_name,
            rng=rng,
            method=method,
        )
        return self.by_kind(self.backbone, found, images), {**batch_stats, "backbone": new}

    def targets(self, variables: Variables, views: Float[Array, "batch height width channels"]) -> Features:
        """The teacher's features of each of `kinds`, as the teacher gives them, without gradient."""
        model, images = self.frozen.model, self.frozen.sees(views, self.teacher_size)
        method = maps.method_of_both(model) if "places" in self.kinds else "__call__"
        return self.by_kind(model, jax.lax.stop_gradient(model.apply(variables, images, method=method)), images)

    def by_kind(self, model: nn.Module, found: Any, images: Float[Array, "batch height width channels"]) -> Features:
        """What a network gave -> its features of each of `kinds`."""
        features = maps.both(model, found, images) if "places" in self.kinds else (found,)
        return dict(zip(self.kinds, features, strict=True))

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return {**state, "step": jnp.asarray(step, jnp.int32)}

    def traffic(self, view: tuple[int, int, int]) -> Traffic:
        # Mean and deviation of the teacher's features are averaged over the devices.
        statistics = 2 * 4 * self.frozen.model.dim * len(self.kinds)
        return Traffic(passes=2 if self.local_views else 1, reduced=statistics)


def moved_statistics(
    old: State, target: Float[Array, "batch ... dim"], rate: Float[Array, ""], axis_name: str | None
) -> dict[str, Float[Array, " dim"]]:
    """Mean and deviation of each entry over the global batch and its places, mixed into the old ones by `rate`."""
    rows = target.reshape(-1, target.shape[-1]).astype(jnp.float32)
    mean = global_mean(jnp.mean(rows, axis=0), axis_name)
    deviation = jnp.sqrt(global_mean(jnp.mean(jnp.square(rows - mean), axis=0), axis_name))
    return {name: old[name] + rate * (x - old[name]) for name, x in (("mean", mean), ("deviation", deviation))}
