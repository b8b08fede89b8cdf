"""The one train step, as one device of the mapped axis sees it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float

from ssl_jax import split
from ssl_jax.evaluation import representation
from ssl_jax.evaluation.spectrum import spectral

# The health metrics are taken of at most this many images: their cost grows with the square.
HEALTH_IMAGES = 1024


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes, and all that a checkpoint holds. The counts are int32 scalars."""

    step: Any  # optimizer steps done, skipped ones included
    params: Any
    model_state: Any
    opt_state: Any
    rng: Any  # the key that each step folds its number into
    skipped: Any  # updates left out because the loss or a gradient was not finite
    skipped_in_a_row: Any


def create_state(method: Any, tx: optax.GradientTransformation, images: Any, seed: int) -> TrainState:
    """The state before the first step. `images`: [batch, height, width, channels] of the shape of a view."""
    rng_init, rng = jax.random.split(jax.random.key(seed))
    params, model_state = method.init(rng_init, images)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        model_state=model_state,
        opt_state=tx.init(params),
        rng=rng,
        skipped=jnp.zeros_like(zero),
        skipped_in_a_row=jnp.zeros_like(zero),
    )


def with_backbone(state: TrainState, variables: Mapping[str, Any]) -> TrainState:
    """The state before the first step with the backbone, and teachers' copies of it, at given weights.

    Args:
      variables: {"params", "batch_stats"} of a backbone of the same architecture; those of ResNets and ViTs are kept by
        every method under the name "backbone".
    Raises: ValueError for another architecture.
    """
    given = [variables["params"], variables.get("batch_stats", {})]

    def placed(tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        return {name: fitting(part) if name == "backbone" else placed(part) for name, part in tree.items()}

    def fitting(part: Any) -> Any:
        for candidate in given:
            if jax.tree.map(jnp.shape, candidate) == jax.tree.map(jnp.shape, part):
                return jax.tree.map(np.array, candidate)  # a copy for each place: a step donates its state's buffers
        raise ValueError("the weights to begin with are of another architecture than the method's backbone")

    return state.replace(params=placed(state.params), model_state=placed(state.model_state))


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """(state, batch) -> (new state, metrics), in two halves, so that a state can be split over the devices.

    `gradients` is the work of one device of the named axis on its rows of the batch; `apply` has no collectives and is
    the same on all. One after the other, as calling this does, they are the step of one device with the whole state.
    A step whose loss or gradient is not finite changes nothing but the counters, and reports "skipped_steps".
    The health metrics (see `health`) are computed on the steps that are logged, and zero on the others.
    """

    method: Any
    tx: optax.GradientTransformation
    augment: Callable[[Any, Any], Any]
    axis_name: str
    log_every: int

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        return self.apply(state, *self.gradients(state, batch))

    def gradients(
        self, state: TrainState, batch: Any, axes: TrainState | None = None, *, in_loops: bool = True
    ) -> tuple[Any, dict[str, Any]]:
        """(the gradient of the loss of the whole batch, what else `apply` wants to know); the same on every device.

        Args:
          axes: the axis along which each leaf of the state is split over the devices, WHOLE where it is not; None:
            none is. Gradients are split as their parameters are; of the new model state what is gathered late still is.
          in_loops: whether a loop may gather in each round.
        """
        if axes is None:
            axes = jax.tree.map(lambda _: split.WHOLE, state)
        rng_augment, rng_loss = jax.random.split(jax.random.fold_in(state.rng, state.step))
        batch = self.augment(rng_augment, batch)  # uint8 [batch, height, width, channels] -> the method's views
        gather = functools.partial(split.gather, axis_name=self.axis_name, in_loops=in_loops)
        old_model_state = gather(state.model_state, axes.model_state, to="invarying")

        def global_loss(params):
            params = vary(gather(params, axes.params, to="varying"), self.axis_name)
            loss, aux = self.method.loss(params, old_model_state, batch, rng_loss, axis_name=self.axis_name)
            # Inside the differentiated function, and the gradient is averaged again below: exact under shard_map, with
            # and without its check, and under pmap. Only one of the two is N times off in one of them.
            return lax.pmean(loss, self.axis_name), aux

        (loss, (model_state, metrics)), grads = jax.value_and_grad(global_loss, has_aux=True)(state.params)
        embeddings = metrics.pop("embeddings")

        def average(gradient, axis):
            # Of a split parameter it is summed and split already.
            return average_unequal(gradient, self.axis_name) if axis == split.WHOLE else gradient

        grads = jax.tree.map(average, grads, axes.params)
        grad_norm = global_norm(grads, self.axis_name)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # `finite` makes the branch wait for the gradients. XLA's CPU backend (JAX 0.10.2) lets its collectives run
        # beside theirs otherwise, takes the one for the other, and corrupts its memory.
        measured = lax.cond(
            is_logged(state.step + 1, self.log_every) & finite,
            lambda: health(embeddings, self.axis_name),
            lambda: dict.fromkeys(HEALTH if len(embeddings) > 1 else HEALTH_OF_ONE, jnp.zeros(())),
        )
        metrics = average_unequal(metrics, self.axis_name) | {"grad_norm": grad_norm}
        metrics |= {name: jnp.where(finite, value, jnp.nan) for name, value in measured.items()}
        return grads, {"model_state": split.values(model_state), "metrics": metrics, "finite": finite}

    def apply(
        self, state: TrainState, grads: Any, found: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """What `gradients` found -> (new state, metrics)."""
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        if hasattr(self.method, "constrain"):
            params = self.method.constrain(params)
        model_state = self.method.update(params, found["model_state"], state.step + 1)
        new = (params, model_state, opt_state)
        old = (state.params, state.model_state, state.opt_state)
        finite = found["finite"]
        params, model_state, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        state = state.replace(
            step=state.step + 1,
            params=params,
            model_state=model_state,
            opt_state=opt_state,
            skipped=state.skipped + ~finite,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        counts = {"skipped_steps": state.skipped, "skipped_in_a_row": state.skipped_in_a_row}
        return state, found["metrics"] | counts


@dataclasses.dataclass(frozen=True)
class Preparing:
    """A method during the pass over all images that comes before its training: the method of a `TrainStep` of
    `standing_still`, which moves nothing but the model state."""

    method: Any
    batches: int  # of the pass

    def loss(self, params, state, batch, rng, *, axis_name=None):
        state, z = self.method.prepare(params, state, batch, rng, axis_name=axis_name)
        loss = lax.stop_gradient(jnp.mean(jnp.square(z)))  # of no use but to show what is not finite
        return loss, (state, {"loss": loss, "embeddings": z})

    def update(self, params: Any, state: Any, step: Any) -> Any:
        return lax.cond(step == self.batches, self.method.prepared, lambda _, state: state, params, state)


def standing_still(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer with the state of `tx`, under which nothing changes."""
    return optax.GradientTransformation(tx.init, lambda grads, state, _: (jax.tree.map(jnp.zeros_like, grads), state))


def varies(x: Any, axis_name: str) -> bool:
    """Whether shard_map's check, of which pmap has none, knows `x` as one that may differ between devices."""
    return axis_name in jax.typeof(x).manual_axis_type.varying


def vary(tree: Any, axis_name: str) -> Any:
    """The leaves, which are the same on all devices, as each device's own, so that a gradient is summed over devices
    once, when it is complete, and not at each use of a parameter: with two views that is half of what is sent."""
    if not varies(lax.axis_index(axis_name), axis_name):
        return tree
    return jax.tree.map(lambda x: x if varies(x, axis_name) else lax.pcast(x, axis_name, to="varying"), tree)


def average_unequal(tree: Any, axis_name: str) -> Any:
    """The mean over devices of each leaf, without sending those that are known to be the same on all.

    Of shard_map's gradients all are, with its check: averaging them again would send every parameter twice a step.
    Without the check, and under pmap, nothing is known to be.
    """
    if not varies(lax.axis_index(axis_name), axis_name):
        return lax.pmean(tree, axis_name)
    return jax.tree.map(lambda x: lax.pmean(x, axis_name) if varies(x, axis_name) else x, tree)


def global_norm(tree: Any, axis_name: str) -> Float[Array, ""]:
    """The norm of all leaves together, of which some may be split over the devices."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    split = [part for part in squares if varies(part, axis_name)]
    total = sum(part for part in squares if not varies(part, axis_name))
    return jnp.sqrt(total + lax.psum(sum(split), axis_name) if split else total)


def is_logged(step: Any, log_every: int) -> Any:
    """Whether the metrics of step number `step` (from 1) are logged: the first and each `log_every`-th."""
    return (step == 1) | (step % log_every == 0)


SPECTRAL = ("rankme", "stable_rank", "nesum", "alpha_req", "alpha_req_r2")  # all from the same two SVDs
HEALTH_OF_ONE = ("embedding_std", "uniformity", "embedding_dim", "rank_limit", *SPECTRAL)  # of a single view
HEALTH = (*HEALTH_OF_ONE, "alignment")


def health(embeddings: Float[Array, "views batch dim"], axis_name: str) -> dict[str, Float[Array, ""]]:
    """How the embeddings of the global batch (its first `HEALTH_IMAGES` rows) spread: see docs/metrics.md.

    "embedding_std", "uniformity" and those of `SPECTRAL` of the first view, "alignment" between the first two, if there
    are; and what the former are to be seen against: "embedding_dim", and the most that a rank can be, "rank_limit".
    "alpha_req" is NaN where a batch or an embedding is too small for it.
    Of a single view they are features that no loss of cosines keeps around the origin, so their mean is taken off.
    """
    # Known to be the same on every device: the singular values that TPUs find in a loop are refused by the check else.
    views = lax.all_gather(lax.stop_gradient(embeddings), axis_name, axis=1, tiled=True, to="invarying")
    views = views[:, :HEALTH_IMAGES]
    z1 = views[0] if len(views) > 1 else views[0] - jnp.mean(views[0], axis=0)
    of_spectrum = spectral(z1)
    values = {name: of_spectrum[name] for name in SPECTRAL} | {
        "embedding_std": representation.embedding_std(z1),
        "uniformity": representation.uniformity(z1),
        "embedding_dim": jnp.float32(z1.shape[-1]),
        "rank_limit": jnp.float32(min(z1.shape)),
    }
    if len(views) > 1:
        values["alignment"] = representation.alignment(z1, views[1])
    return values
