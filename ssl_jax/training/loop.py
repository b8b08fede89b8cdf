"""The loop of a run: from its first step, or a checkpoint, to its last."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from ssl_jax import dist
from ssl_jax.config import Config
from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source
from ssl_jax.paths import AnyPath
from ssl_jax.training import profiling, reading
from ssl_jax.training.build import Training
from ssl_jax.training.checkpoint import Checkpoints
from ssl_jax.training.profiling import Profile
from ssl_jax.training.progress import OnMetrics, Progress
from ssl_jax.training.state import TrainState, with_backbone, with_constants, without_constants
from ssl_jax.training.step import TrainStep
from ssl_jax.training.termination import Stopped, Termination, Timer
from ssl_jax.training.timing import CHECKPOINT, EVALUATION, HOST, INPUT, STEP, Activity
from ssl_jax.weights import Backbone
from ssl_jax.workdir.metrics import MetricsWriter

STEPS_AHEAD = 2  # of the host before the device: enough to hide the host's work, few enough to bound memory
Evaluate = Callable[[TrainState], float | None]  # accuracy in percent; None if there are too few labels


def read_batches(config: Config, source: Source, training: Training, *, seed: int, start_step: int = 0) -> Any:
    """This process's rows of the run's batches, from `start_step` on."""
    data = config.data
    return pipeline.train_batches(
        source,
        seed=seed,
        batch_size=config.batch_size,
        image_size=data.image_size,
        crops=lambda step: [augmentation.crop for augmentation in training.at(step).augmentations],
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        memory_bytes=data.memory_bytes,
        at_random=data.random_windows,
        black=reading.normalization(config).low,
        threads=data.threads,
        prefetch=data.prefetch,
    )


class Loop:
    """A run's steps: `restore`, then `prepare` if the run begins, then `run`.

    Args:
      workdir: of the run, claimed and locked.
      begin: a backbone whose weights the run begins with; None: it begins with the initialization.
      activity: where the loop says what it does.
    """

    def __init__(
        self,
        config: Config,
        training: Training,
        source: Source,
        workdir: AnyPath,
        termination: Termination,
        begin: Backbone | None = None,
        activity: Activity | None = None,
    ):
        self.config, self.training, self.source = config, training, source
        self.mesh, self.checkpoints = dist.make_mesh(), Checkpoints(workdir / "checkpoints")
        self.steps = training.schedule.steps
        self._termination, self._begin, self._workdir = termination, begin, workdir
        self._activity, self._hosts = activity or Activity(), dist.hosts()

    def restore(self) -> TrainState:
        """The state of the newest checkpoint, or the state before the first step.

        Raises: ConfigError if the weights to begin with do not fit.
        """

        def first(*variables: Any) -> TrainState:
            state = self.training.create_state()
            return with_backbone(state, *variables) if variables else state

        def constants_alone(*variables: Any) -> dict[str, Any]:
            begun = first(*variables).model_state
            return {name: begun[name] for name in constants}

        given = () if self._begin is None else (jax.tree.map(np.asarray, dict(self._begin.variables)),)
        constants, shard_state = self.training.method.constants, self.config.shard_state
        # From its shapes alone, so that memory never holds two states.
        shapes = dist.state_shapes(first, self.mesh, *given, shard_state=shard_state)
        saved = self.checkpoints.restore(without_constants(shapes, constants))
        if saved is None:
            return dist.create_state(first, self.mesh, *given, shard_state=shard_state)
        if not constants:
            return saved
        return with_constants(saved, dist.create_state(constants_alone, self.mesh, *given, shard_state=shard_state))

    def prepare(self, state: TrainState) -> TrainState:
        """The state after the pass over all images that a method wants before its first step. Raises: Stopped."""
        if self.training.prepare is None:
            return state
        batches = read_batches(self.config, self.source, self.training.unmixed, seed=self.config.seed + 1)
        number, shard_state = self.training.method.preparing_steps, self.config.shard_state
        return prepare(
            self.training.prepare,
            number,
            state,
            batches,
            self.mesh,
            self._termination,
            self._activity,
            shard_state=shard_state,
        )

    def run(
        self,
        state: TrainState,
        batches: Iterator[Any],
        writer: MetricsWriter | None,
        *,
        evaluate: Evaluate | None = None,
        on_metrics: OnMetrics | None = None,
        on_first_batch: Callable[[Any], None] = lambda batch: None,
        profile: Profile | None = None,
    ) -> TrainState:
        """The state after the last step, which is saved.

        Args:
          batches: from the state's step on, see `read_batches`.
          writer: None in a process that leaves writing and printing to another.
          evaluate: called every config.evaluate_every steps.
          on_metrics: (step, metrics) -> None, called with what is logged, in the process that writes.
          on_first_batch: called with the batch of step 1, when that step is printed.
          profile: steps of which a trace is written to the workdir.
        Raises: Stopped, with the state saved; Diverged; CheckpointError.
        """
        config, activity, start = self.config, self._activity, int(state.step)
        progress = Progress(
            writer,
            self.training.learning_rate,
            chance_level=self.training.method.chance_level,
            batch_size=config.batch_size,
            log_every=config.log_every,
            start=start,
            steps=self.steps,
            stop_after_skipped=config.stop_after_skipped,
            on_metrics=on_metrics,
            activity=activity,
            mesh=self.mesh,
            hosts=self._hosts,
        )
        train_steps = [dist.map_step(one.step, self.mesh, shard_state=config.shard_state) for one in self.training.each]
        agree = dist.Agreement(self.mesh, delay=STEPS_AHEAD)
        due, ahead = Timer(60.0 * config.checkpoint_minutes), collections.deque()
        compiled: set[int] = set()  # entries of config.mix
        steps = range(start + 1, self.steps + 1)
        traced = profiling.traced(steps, profile, self._workdir / "profile", lambda: jax.block_until_ready([*ahead]))
        for number in traced:
            with activity.doing(INPUT):
                batch = next(batches)
                rows = dist.shard_batch(batch, self.mesh)
            entry = self.training.entry(number - 1)
            with activity.stepping(number, ahead[-1] if ahead else None, compiling=entry not in compiled):
                state, metrics = train_steps[entry](state, rows)
                compiled.add(entry)
                wait_for_older(ahead, metrics["loss"])
            measured = evaluate and config.evaluate_every and number % config.evaluate_every == 0
            progress.step(number, metrics, more=bool(measured))
            if number == 1:
                with progress.paused(state, HOST):
                    on_first_batch(batch)
                activity.restart()  # once in a run: it is not where the time goes
            self.checkpoints.check()
            accuracy = None
            if evaluate and measured:
                with progress.paused(state, EVALUATION):
                    accuracy = evaluate(state)
                    if accuracy is not None:
                        progress.add(knn_top1=accuracy)
            with activity.doing(STEP):
                stop, save = agree(self._termination.requested, due.passed())
            if save or stop or number % config.checkpoint_every == 0 or number == self.steps:
                progress.flush()
                with progress.paused(state, CHECKPOINT):
                    self.checkpoints.save(number, without_constants(state, self.training.method.constants), accuracy)
                due.restart()
            if stop and number < self.steps:
                self.checkpoints.close()
                raise Stopped(
                    f"stopped by {self._termination.signal}; step {number} is saved, and the same command goes on from "
                    "there"
                )
        self.checkpoints.close()
        return state


def prepare(
    one_step: TrainStep,
    number: int,
    state: TrainState,
    batches: Iterator[Any],
    mesh: dist.Mesh,
    termination: Termination,
    activity: Activity,
    *,
    shard_state: bool,
) -> TrainState:
    """The state after a pass of `number` batches before the first step.

    The augmentations of this pass differ from the first epoch's. Raises: Stopped.
    """
    if dist.is_first():
        print(f"a pass over all images before the first step: {number} batches", flush=True)
    mapped = dist.map_step(one_step, mesh, shard_state=shard_state)
    agree, ahead = dist.Agreement(mesh, delay=STEPS_AHEAD), collections.deque()
    rng = state.rng
    state = state.replace(rng=jax.jit(lambda key: jax.random.fold_in(key, 1))(rng))
    for _ in range(number):
        with activity.doing(INPUT):
            rows = dist.shard_batch(next(batches), mesh)
        with activity.doing(STEP):
            state, metrics = mapped(state, rows)
            wait_for_older(ahead, metrics["loss"])
        (stop,) = agree(termination.requested)
        if stop:
            raise Stopped(f"stopped by {termination.signal} before the first step; the same command begins again")
    return jax.jit(lambda state, rng: state.replace(step=state.step * 0, rng=rng))(state, rng)


def wait_for_older(ahead: collections.deque, loss: Any) -> None:
    """Waits until the device is no more than STEPS_AHEAD steps behind the step with this loss."""
    ahead.append(loss)
    if len(ahead) > STEPS_AHEAD:
        ahead.popleft().block_until_ready()
