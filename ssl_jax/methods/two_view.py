"""A method from a loss of two views."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float, Key

from ssl_jax.methods import toolkit
from ssl_jax.methods.contract import Base, Batch, Output, Params, Schedule, State
from ssl_jax.models.heads import MLP

Loss = Callable[..., Float[Array, ""]]  # (z1 [batch, dim], z2 [batch, dim], *, axis_name) -> the mean over these rows


@dataclasses.dataclass(frozen=True)
class TwoView:
    """A method whose loss compares the projections of two views; for `ssl_jax.pretrain(..., method=TwoView(loss))`.

        def loss(z1, z2, *, axis_name):
            return losses.nt_xent(z1, z2, axis_name=axis_name) + 0.1 * losses.koleo(z1, axis_name=axis_name)

    Args:
      loss: (z1 [batch, dim], z2 [batch, dim], *, axis_name) -> scalar. Its mean over devices is to be the loss of the
        whole batch, as that of every function of `ssl_jax.losses` is.
      projector: widths of the layers between backbone and loss, with BatchNorm and ReLU between them; () for none.
      views: the augmentations of the two views, keys of config.augment.
      together: whether both views pass the networks as one batch, so that BatchNorm's statistics span them.
    Raises: ValueError for other than two views, or a width below 1.
    """

    loss: Loss
    projector: tuple[int, ...] = (2048, 128)
    views: tuple[str, str] = ("view", "view")
    together: bool = True

    def __post_init__(self) -> None:
        if len(self.views) != 2:
            raise ValueError(f"views must name the augmentations of two views, got {self.views}")
        if min(self.projector, default=1) < 1:
            raise ValueError(f"projector must be widths of at least 1, got {self.projector}")

    def __call__(self, backbone: nn.Module, schedule: Schedule) -> "TwoViewMethod":
        return TwoViewMethod(backbone, schedule, self)


@dataclasses.dataclass(frozen=True)
class TwoViewMethod(Base):
    """What a `TwoView` is with a backbone."""

    backbone: nn.Module
    schedule: Schedule
    given: TwoView

    chance_level = None

    @property
    def views(self) -> tuple[str, str]:
        return self.given.views

    @property
    def networks(self) -> toolkit.Networks:
        if not self.given.projector:
            return {"backbone": self.backbone}
        return {"backbone": self.backbone, "projector": MLP(self.given.projector, hidden_bias=True, output_bias=True)}

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        params, batch_stats = toolkit.init(self.networks, rng, images)
        return params, {"batch_stats": batch_stats}

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        outputs, batch_stats = toolkit.forward_views(
            self.networks,
            params,
            state["batch_stats"],
            batch["views"],
            axis_name=axis_name,
            rng=rng,
            together=self.given.together,
        )
        z = outputs[[*self.networks][-1]]
        loss = self.given.loss(z[0], z[1], axis_name=axis_name)
        return Output(loss, {"batch_stats": batch_stats}, {}, embeddings=z)
