"""Teachers: copies of networks that the state keeps, moved after each step; and frozen ones from files.

state["teacher"] = {"params": ..., "batch_stats": ...}, both by the networks' names.
"""

# pyright: reportUnknownMemberType=false

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated, Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from ssl_jax import optim
from ssl_jax.keys import NOT_NEGATIVE
from ssl_jax.methods.contract import Base, Params, Schedule, State, Variables
from ssl_jax.methods.toolkit.networks import Networks, forward_views, select
from ssl_jax.methods.toolkit.rows import take_rows
from ssl_jax.models import maps
from ssl_jax.models.abilities import without_noise
from ssl_jax.models.dcgan import Discriminator
from ssl_jax.ops.collectives import num_rows


def make_teacher(networks: Networks, params: Params, batch_stats: State) -> dict[str, Any]:
    """A copy of `networks` for the state, to be moved by `move_teacher`."""
    copy = {"params": select(params, networks), "batch_stats": select(batch_stats, networks)}
    return jax.tree.map(jnp.copy, copy)


def forward_teacher(
    networks: Networks,
    teacher: Variables,
    views: Sequence[Float[Array, "batch _ _ channels"]],
    *,
    axis_name: str | None,
    together: bool,
    shuffle: Key[Array, ""] | None = None,
) -> tuple[dict[str, Float[Array, "views batch ..."]], dict[str, Any]]:
    """As `forward_views`, without gradient -> (outputs, the teacher with new BatchNorm statistics).

    BatchNorm uses its batch's statistics, as in training. Stochastic depth is off.

    shuffle: the rows of the global batch go through the networks in a random order, and the outputs are put back.
    """
    networks = {name: without_noise(module) for name, module in networks.items()}
    order = None
    if shuffle is not None:
        order = jax.random.permutation(shuffle, num_rows(views[0], axis_name))
        views = [take_rows(x, order, axis_name) for x in views]
    outputs, batch_stats = forward_views(
        networks, teacher["params"], teacher["batch_stats"], views, axis_name=axis_name, together=together
    )
    if order is not None:
        put_back = functools.partial(take_rows, order=jnp.argsort(order), axis_name=axis_name)
        outputs = {name: jax.vmap(put_back)(x) for name, x in outputs.items()}
    return lax.stop_gradient(outputs), {**teacher, "batch_stats": lax.stop_gradient(batch_stats)}


def move_teacher(teacher: Variables, params: Params, decay: float | Float[Array, ""]) -> dict[str, Any]:
    """After the optimizer: decay * the teacher's weights + (1 - decay) * those that the next step starts from."""
    return {**teacher, "params": optim.ema(teacher["params"], select(params, teacher["params"]), decay)}


def teacher_backbone(self: Base, params: Params, state: State) -> Variables:
    """Variables of the teacher's backbone. A method that keeps it sets `backbone_variables = teacher_backbone`."""
    teacher = state["teacher"]
    return {"params": teacher["params"]["backbone"], "batch_stats": teacher["batch_stats"]["backbone"]}


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen backbone, and how it sees a student's views.

    model, variables: as `weights.load_backbone` gives them.
    scale, offset: for each of its channels. It is given scale * view + offset, with views normalized for the student.
      It may have more channels than the views if these have one.
    """

    model: nn.Module
    variables: Variables
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def sees(
        self, view: Float[Array, "batch height width channels"], side: int
    ) -> Float[Array, "batch height2 width2 channels2"]:
        """The view as the teacher takes it. side: of the image in pixels; 0: the view's own, fitted to its patches."""
        patch = getattr(self.model, "patch_size", 1)
        height, width = (side or max(round(pixels / patch), 1) * patch for pixels in view.shape[1:3])
        if (height, width) != view.shape[1:3]:
            view = cast(Array, jax.image.resize(view, (len(view), height, width, view.shape[3]), "bilinear"))
        return view * np.asarray(self.scale, np.float32) + np.asarray(self.offset, np.float32)


TeacherPath = Annotated[
    str, "The teacher, which must be given: a run's directory, or a safetensors file, as load_backbone takes it."
]
TeacherModel = Annotated[str, "The teacher's architecture, a name as of model.name, for weights that do not say it."]
TeacherSize = Annotated[
    int,
    NOT_NEGATIVE,
    "Side in pixels of the square that the teacher sees, to which every view is resized.",
    "0: the view's own size, or the nearest that a ViT's patches divide.",
]


@dataclasses.dataclass(frozen=True)
class Taught(Base):
    """What methods with a frozen teacher from a file have in common. Its weights are a constant of the state.

    Raises: ValueError without a teacher.
    """

    backbone: nn.Module
    schedule: Schedule
    teacher: TeacherPath = ""
    teacher_model: TeacherModel = ""
    teacher_size: TeacherSize = 0
    loaded: Teacher | None = None  # the teacher itself, made of the keys above when a run is built

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loaded is None:
            raise ValueError(
                f"{type(self).__name__} needs a teacher; say --config.method.teacher=PATH, a directory of a run of "
                "ssl_jax train or a safetensors file, and for a file that does not name its architecture, such as "
                "timm's, also --config.method.teacher_model=NAME"
            )

    @property
    def frozen(self) -> Teacher:
        """The teacher."""
        assert self.loaded is not None  # by __post_init__
        return self.loaded

    @property
    def constants(self) -> State:
        return {"teacher": self.frozen.variables}


def has_places(module: nn.Module) -> bool:
    """Whether a network has features of places whose width is that of its features of a whole image."""
    return maps.has_patch_map(module) and not isinstance(module, Discriminator)


def resized(target: Float[Array, "batch ... dim"], like: Sequence[int]) -> Float[Array, "batch ... dim"]:
    """Features of places, resized to the grid of an array of the shape `like`; those of whole images as they are."""
    shape = (*like[:-1], target.shape[-1])
    if target.shape == shape:
        return target
    return cast(Array, jax.image.resize(target, shape, "bilinear", precision=lax.Precision.HIGHEST))
