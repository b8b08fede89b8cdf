"""What a method is: `Method`, with `Output`, `Batch`, `Schedule` and `Traffic`; `Base` has all that is optional.

A method is a small immutable object with pure functions. It is written as a frozen dataclass that inherits from `Base`.
Its first two fields are `backbone` and `schedule`; the others are its keys in a config, each annotated as keys.py says:

    @dataclasses.dataclass(frozen=True)
    class SimCLR(Base):
        backbone: nn.Module
        schedule: Schedule
        temperature: Annotated[float, POSITIVE, "Softmax temperature."] = 0.1

A method refuses what it cannot run with when it is made, by a ValueError that says what to do.
"""

# pyright: reportUnknownMemberType=false

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict, runtime_checkable

import flax.linen as nn
from jaxtyping import Array, Bool, Float, Int, Key

from ssl_jax import keys

Params = Mapping[str, Any]  # of the networks, by name: what the optimizer trains
State = Mapping[str, Any]  # all else that changes: BatchNorm statistics, teachers, queues, centers
Variables = Mapping[str, Any]  # {"params": ..., "batch_stats": ...} of one Linen module


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The facts of a run that schedules and chance levels depend on.

    batch_size: images a step over all devices. steps: optimizer steps of the whole run.
    steps_per_epoch, num_images, num_classes (0 without labels): of the data that it trains on.
    """

    batch_size: int
    steps: int
    steps_per_epoch: int
    num_images: int
    num_classes: int = 0


class Batch(TypedDict):
    """A device's rows of the batch.

    views: one array for each name in `Method.views`, normalized. boxes: where each view lies in its image: top, left,
    height and width, shares of its sides; 1 where it is mirrored; the degrees by which it was turned counterclockwise
    after that. masks: one for each view named in `Method.masked`, True where a patch is masked. index: of each image in
    the data set. label: -1 where there is none.
    """

    views: tuple[Float[Array, "batch _ _ channels"], ...]
    boxes: tuple[Float[Array, "batch 6"], ...]
    masks: tuple[Bool[Array, "batch patches"], ...]
    index: Int[Array, "batch *words"]  # see ops.Index
    label: Int[Array, " batch"]


class Output(NamedTuple):
    """What a method's loss gives.

    loss: the mean over this device's rows; averaged over devices it is the loss of the whole batch.
    state: the new one, the same on every device.
    metrics: scalars to be logged beside the loss, means over this device's rows or the same on every device.
    embeddings: of the views that the loss compares, for the health metrics. Of methods with a single view, features;
      their mean over the batch is subtracted there, since no loss of cosines keeps them around the origin.
    """

    loss: Float[Array, ""]
    state: State
    metrics: Mapping[str, Float[Array, ""]]
    embeddings: Float[Array, "views batch dim"]


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What a method sends between devices in a step, at most, beside each parameter's gradient once.

    passes: of the student through BatchNorm; each gathers every device's statistics, and sums their gradient in the
      backward pass. Several views that pass together are one pass, of two sizes two.
    teacher_passes: of the teacher through BatchNorm, forward only.
    grouped: whether each pass sums the gradients of every group of a backbone with batch_norm="grouped".
    reduced: bytes by all-reduce.
    gathered: bytes by all-gather, of the global batch.
    scattered: bytes by reduce-scatter: the gradient of what is gathered, where it has one.
    images: whether images are among what is gathered.
    unused: bytes of parameters that have no gradient and are not sent.
    """

    passes: int = 0
    teacher_passes: int = 0
    grouped: bool = False
    reduced: int = 0
    gathered: int = 0
    scattered: int = 0
    images: bool = False
    unused: int = 0


@runtime_checkable
class Trainable(Protocol):
    """What a train step asks of a method. All functions are pure; params, state and batch are pytrees of arrays.

    With an `axis_name`, params and state are the same on every device and stay so, and the batch is a device's rows.
    """

    @property
    def banks(self) -> Mapping[str, int]:
        """{entry of the state: rows of its arrays} of what has a row for each image; see toolkit/banks.py.

        Where the state is sharded, no device has these arrays whole: `loss` may get an `ops.shards.Shard` in place of
        each, and `update` an `ops.shards.Divided`.
        """
        ...

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        """(params, state) before the first step."""
        ...

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        """One forward pass in training mode."""
        ...

    def constrain(self, params: Params) -> Params:
        """After each step of the optimizer, before `update`: what must hold of parameters, such as unit length."""
        ...

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        """After the optimizer: moves teachers, schedules, clusterings. `step`: the number of steps done."""
        ...


@runtime_checkable
class Method(Trainable, Protocol):
    """What a run asks of a method."""

    @property
    def backbone(self) -> nn.Module:
        """The network that is kept of the run: images [batch, height, width, channels] -> h [batch, dim]."""
        ...

    @property
    def constants(self) -> State:
        """Entries of the state that no step changes, such as the weights of a teacher from a file.

        `init` puts them into the state as they are. Checkpoints leave them out. run.json has their digests, so that a
        run goes on with the same ones only.
        """
        ...

    @property
    def views(self) -> Sequence[str]:
        """Names of the augmentations (keys of `config.augment`) of the views that it takes, in order."""
        ...

    @property
    def masked(self) -> Sequence[str]:
        """Names of the views that come with a mask, drawn as `config.mask` says."""
        ...

    @property
    def mask_ratio(self) -> float | None:
        """The share of an image's patches that is masked in every image; None where it may differ between images."""
        ...

    @property
    def most_masked(self) -> int:
        """The most patches of an image that may be masked; 0 for any number."""
        ...

    @property
    def mask_side(self) -> int:
        """Pixels a side of a mask's cells in the views in `masked`; 0: as `abilities.masked_side` has it."""
        ...

    @property
    def upright(self) -> bool:
        """Whether its views must stand upright, since its task is to tell how they were turned."""
        ...

    @property
    def chance_level(self) -> float | None:
        """The loss where all embeddings are equal: the network has learnt nothing, or has collapsed. None: unknown."""
        ...

    @property
    def frozen_steps(self) -> Mapping[str, int]:
        """{regular expression of the beginning of a parameter's path: steps for which the optimizer does not see it}"""
        ...

    @property
    def still_steps(self) -> Mapping[str, int]:
        """As `frozen_steps`: steps for which the learning rate is 0, while the optimizer gathers moments."""
        ...

    @property
    def constant_lr(self) -> Sequence[str]:
        """Regular expressions of beginnings of paths of parameters whose learning rate is not decayed."""
        ...

    @property
    def preparing_steps(self) -> int:
        """Batches that `prepare` takes before the first step; 0 for a method that needs none."""
        ...

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        """(new state, embeddings) of one of the `preparing_steps` batches before the first step; no parameter moves."""
        ...

    def prepared(self, params: Params, state: State) -> State:
        """After the last `prepare`."""
        ...

    def backbone_variables(self, params: Params, state: State) -> Variables:
        """Variables of `backbone`: what is worth keeping of the run."""
        ...

    def further_variables(self, params: Params, state: State) -> Mapping[str, Variables]:
        """{name: variables} of networks that are worth keeping, too; {} of a method that trains one backbone."""
        ...

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        """{title: images, normalized as views are} for the report: what it makes of a few images; {} for nothing."""
        ...

    def traffic(self, view: tuple[int, int, int]) -> Traffic | None:
        """What it may send between devices in a step whose state is not sharded; None: unknown.

        view: (height, width, channels) of the first view.
        """
        ...


# The names of all that a method has.
MEMBERS = tuple(name for kind in (Trainable, Method) for name in vars(kind) if not name.startswith("_"))

# What makes a method of a backbone and a schedule: a class as above, a functools.partial of it with options, `TwoView`.
MethodFactory = Callable[[nn.Module, Schedule], Method]


class Base:
    """All that is optional of a `Method`, and the check of its keys."""

    backbone: nn.Module
    schedule: Schedule

    masked: Sequence[str] = ()
    mask_ratio: float | None = None
    most_masked: int = 0
    mask_side: int = 0
    upright: bool = False
    chance_level: float | None = None
    preparing_steps: int = 0
    constant_lr: Sequence[str] = ()

    def __post_init__(self) -> None:
        keys.check_fields(self)

    @property
    def banks(self) -> Mapping[str, int]:
        return {}

    @property
    def constants(self) -> State:
        return {}

    @property
    def frozen_steps(self) -> Mapping[str, int]:
        return {}

    @property
    def still_steps(self) -> Mapping[str, int]:
        return {}

    def constrain(self, params: Params) -> Params:
        return params

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return state

    def prepare(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> tuple[State, Float[Array, "views batch dim"]]:
        raise NotImplementedError(f"{type(self).__name__} has preparing_steps but no method prepare; write one")

    def prepared(self, params: Params, state: State) -> State:
        return state

    def backbone_variables(self, params: Params, state: State) -> Variables:
        """Variables of the backbone that the optimizer trains, of `params` and of `state["batch_stats"]`."""
        return {"params": params["backbone"], "batch_stats": state["batch_stats"]["backbone"]}

    def further_variables(self, params: Params, state: State) -> Mapping[str, Variables]:
        return {}

    def pictures(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""]
    ) -> Mapping[str, Float[Array, "batch height width channels"]]:
        return {}

    def traffic(self, view: tuple[int, int, int]) -> Traffic | None:
        return None

    def features(
        self, params: Params, state: State, images: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch dim"]:
        """h of the backbone that is kept, in evaluation mode."""
        h: Any = self.backbone.apply(self.backbone_variables(params, state), images)
        return h
