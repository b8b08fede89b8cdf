"""The train step, as one device of the mapped axis sees it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from ssl_jax import ops
from ssl_jax.health import panel
from ssl_jax.methods.contract import Base, Batch, Method, Output, Params, State, Trainable
from ssl_jax.ops import shards
from ssl_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """(state, batch) -> (new state, metrics), in two halves, so that a state can be sharded over the devices.

    `gradients` is the work of one device of the named axis on its rows of the batch. `apply` has no collectives and is
    the same on all devices. A call runs both, one after the other: the step of one device that holds the whole state.
    A step whose loss or gradient is not finite changes only the counters, and reports "skipped_steps".
    The health metrics (see health/panel.py) are computed on the steps that are logged; on the others they are zero.
    """

    method: Trainable
    tx: optax.GradientTransformation
    augment: Callable[[Any, Any], Any]
    axis_name: str
    log_every: int
    last_step: int = 0  # of the run, whose metrics are logged, too; 0 if it is not known
    reduce_dtype: str = "float32"  # in which gradients are sent and summed over devices, float32 or bfloat16

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        return self.apply(state, *self.gradients(state, batch))

    def gradients(
        self,
        state: TrainState,
        batch: Any,
        axes: TrainState | None = None,
        divided: Any = None,
        *,
        torus: shards.Torus | None = None,
        in_loops: bool = True,
    ) -> tuple[Any, dict[str, Any]]:
        """(the gradient of the whole batch's loss, what else `apply` needs); the same on every device.

        Args:
          axes: the axis along which each leaf of the state is sharded, shards.REPLICATED if it is not. None: no leaf is
            sharded. A gradient is sharded like its parameter. Leaves of the new model state that are gathered late stay
            sharded.
          divided: of the model state, as in `shards.gather`. These leaves stay sharded, too.
          torus, in_loops: as in `shards.Route`.
        """
        along: TrainState = jax.tree.map(lambda _: shards.REPLICATED, state) if axes is None else axes
        rng_augment, rng_loss = jax.random.split(jax.random.fold_in(state.rng, state.step))
        batch = self.augment(rng_augment, batch)  # uint8 [batch, height, width, channels] -> the method's views
        route = shards.Route(self.axis_name, torus, self.reduce_dtype, in_loops)
        old_model_state = shards.gather(state.model_state, along.model_state, route, to="invarying", divided=divided)

        def global_loss(params):
            params = vary(shards.gather(params, along.params, route, to="varying"), self.axis_name, self.reduce_dtype)
            output = self.method.loss(params, old_model_state, batch, rng_loss, axis_name=self.axis_name)
            # The loss is averaged here, inside the differentiated function, and the gradient is averaged again below.
            # Together they are exact under shard_map, with and without its check, and under pmap. Either of them alone
            # is N times off in one of these.
            return lax.pmean(output.loss, self.axis_name), output

        (loss, output), grads = jax.value_and_grad(global_loss, has_aux=True)(state.params)

        def average(gradient, axis):
            # The gradient of a sharded parameter is summed and sharded already.
            return ops.average_varying(gradient, self.axis_name) if axis == shards.REPLICATED else gradient

        grads = jax.tree.map(average, grads, along.params)
        grad_norm = global_norm(grads, self.axis_name)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        # `finite` makes the branch wait for the gradients. Otherwise XLA's CPU backend (JAX 0.10.2) runs the branch's
        # collectives beside those of the gradients, mixes them up, and corrupts its memory.
        measured = lax.cond(
            is_logged(state.step + 1, self.log_every, self.last_step) & finite,
            lambda: panel.measure(output.embeddings, self.axis_name),
            lambda: dict.fromkeys(panel.names(len(output.embeddings)), jnp.zeros(())),
        )
        metrics = ops.average_varying({"loss": output.loss, **output.metrics}, self.axis_name)
        metrics |= {"grad_norm": grad_norm}
        metrics |= {name: jnp.where(finite, value, jnp.nan) for name, value in measured.items()}
        return grads, {"model_state": shards.values(output.state), "metrics": metrics, "finite": finite}

    def apply(
        self, state: TrainState, grads: Any, found: Mapping[str, Any]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        """What `gradients` found -> (new state, metrics)."""
        updates, opt_state = self.tx.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        params = self.method.constrain(params)
        finite = found["finite"]
        # `finite` makes the collectives of `update` wait for those of the gradients, as in `gradients`. Where it is
        # False, nothing of `update` is kept.
        step = jnp.where(finite, state.step + 1, 0)
        model_state = shards.whole(self.method.update(params, found["model_state"], step))
        new = (params, model_state, opt_state)
        old = (state.params, state.model_state, state.opt_state)
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
class Preparing(Base):
    """A method during the pass over all images that comes before its training.

    Its `TrainStep` has the optimizer `standing_still`, so only the model state changes.
    """

    method: Method

    @property
    def banks(self) -> Mapping[str, int]:
        return self.method.banks

    def init(self, rng: Key[Array, ""], images: Float[Array, "batch height width channels"]) -> tuple[Params, State]:
        return self.method.init(rng, images)

    def loss(
        self, params: Params, state: State, batch: Batch, rng: Key[Array, ""], *, axis_name: str | None = None
    ) -> Output:
        state, z = self.method.prepare(params, state, batch, rng, axis_name=axis_name)
        loss = lax.stop_gradient(jnp.mean(jnp.square(z)))  # only shows whether all is finite
        return Output(loss, state, {}, embeddings=z)

    def update(self, params: Params, state: State, step: Int[Array, ""]) -> State:
        return lax.cond(
            step == self.method.preparing_steps, self.method.prepared, lambda _, state: state, params, state
        )


def standing_still(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that has the state of `tx` and changes nothing."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree.map(jnp.zeros_like, updates), state

    return optax.GradientTransformation(tx.init, update)


def vary(tree: Any, axis_name: str, dtype: str = "float32") -> Any:
    """Marks leaves that are the same on all devices as each device's own.

    Then a gradient is summed over devices once, when it is complete, and not at each use of a parameter. With two views
    that halves what is sent. dtype: in which the gradients are sent and summed.
    """
    if not ops.varies(lax.axis_index(axis_name), axis_name):
        return tree

    def one(x: Any) -> Any:
        if ops.varies(x, axis_name):
            return x
        return lax.pcast(x, axis_name, to="varying") if dtype == "float32" else _vary(x, axis_name, dtype)

    return jax.tree.map(one, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _vary(x: Array, axis_name: str, dtype: str) -> Array:
    return lax.pcast(x, axis_name, to="varying")


def _vary_forward(x: Array, axis_name: str, dtype: str) -> tuple[Array, None]:
    return _vary(x, axis_name, dtype), None


def _vary_backward(axis_name: str, dtype: str, _: None, gradient: Array) -> tuple[Array]:
    return (lax.psum(gradient.astype(dtype), axis_name).astype(gradient.dtype),)


_vary.defvjp(_vary_forward, _vary_backward)


def global_norm(tree: Any, axis_name: str) -> Float[Array, ""]:
    """The norm of all leaves together; some may be sharded over the devices."""
    squares = [jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)]
    sharded = [part for part in squares if ops.varies(part, axis_name)]
    total = sum(part for part in squares if not ops.varies(part, axis_name))
    return jnp.sqrt(total + lax.psum(sum(sharded), axis_name) if sharded else total)


def is_logged(step: Any, log_every: int, last_step: int) -> Any:
    """Whether the metrics of step number `step` (from 1) are logged: the first, each `log_every`-th and the last."""
    return (step == 1) | (step % log_every == 0) | (step == last_step)
