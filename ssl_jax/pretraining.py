"""Pre-training: `pretrain(config, images, workdir=...)`, from a config and what a script gives to a `Run`."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from typing import Any, cast

import jax
import optax
from ml_collections import ConfigDict

from ssl_jax import compiled, dist, paths, weights
from ssl_jax import config as configs
from ssl_jax.config import Config
from ssl_jax.data import Items, as_source
from ssl_jax.data.sources import Source
from ssl_jax.data.uniform import Uniform
from ssl_jax.evaluation.online import make_online_knn
from ssl_jax.methods import MethodFactory, Schedule
from ssl_jax.models.adapt import named
from ssl_jax.paths import AnyPath
from ssl_jax.training import build, profiling, reading, resolution, teachers, watchdog
from ssl_jax.training.augmenting import GivenViews
from ssl_jax.training.beginning import Beginning, show
from ssl_jax.training.build import Given
from ssl_jax.training.loop import Loop, read_batches
from ssl_jax.training.measuring import measured_with_images
from ssl_jax.training.profiling import Profile
from ssl_jax.training.progress import OnMetrics
from ssl_jax.training.state import digest
from ssl_jax.training.termination import Termination
from ssl_jax.training.timing import Activity
from ssl_jax.weights import Backbone, load_backbone
from ssl_jax.workdir import config_file, facts, lock, views
from ssl_jax.workdir.metrics import MetricsWriter, read_metrics

STUDENTS = "students"  # the directory of the further networks of a run


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished pre-training. backbone: as `load_backbone` gives it."""

    workdir: AnyPath
    backbone: Backbone

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """What was logged, a dict for each logged step: "step", "loss", ..."""
        return read_metrics(self.workdir / "metrics.jsonl")

    @property
    def facts(self) -> dict[str, Any]:
        """run.json: what the run was given and where it ran."""
        return facts.read(self.workdir)


def pretrain(
    config: ConfigDict,
    images: Source | Items | None = None,
    *,
    workdir: str | os.PathLike[str],
    backbone: Any = None,
    method: MethodFactory | None = None,
    optimizer: optax.GradientTransformation | None = None,
    augment: GivenViews | None = None,
    begin: Backbone | None = None,
    on_metrics: OnMetrics | None = None,
    profile: Profile | None = None,
    watchdog_seconds: float = 0.0,
) -> Run:
    """Trains until the last step. Called again with the same arguments it goes on from the newest checkpoint.

    What is given here takes the place of a section of the config. run.json says so, and whoever goes on with the run,
    or evaluates it, without giving the same again is told what to give.

    Args:
      config: of `ssl_jax.get_config`, changed as you like.
      images: a source of `ssl_jax.data`, an array, or any object with `__len__` and `__getitem__`; None for those that
        config.data names. Given images of another type or number of channels than config.data's bring their own, with
        their mean and std.
      workdir: where the run's files go: a directory, or gs://BUCKET/DIRECTORY or s3://BUCKET/DIRECTORY.
      backbone: a `flax.linen.Module` or a `flax.nnx.Module`, images [batch, height, width, channels] -> [batch, dim];
        see ssl_jax/models/adapt.py. In place of config.model.
      method: `methods.TwoView(loss)`, a class that inherits from `methods.Base`, or another function (backbone,
        schedule) -> `methods.Method`. In place of config.method.
      optimizer: of optax, in place of config.optimizer; it has its own learning rate.
      augment: how every view is made, or {view: how}: a `data.Augmentation`, or a function (rng, image float32
        [height, width, channels] in 0..1) -> view of one example, jittable. In place of config.augment.
      begin: a backbone of the same architecture whose weights the run begins with, in place of config.begin. Once the
        run has a checkpoint it need not be given again.
      on_metrics: called with (step, {"loss": ..., ...}) of each logged step, in the first process alone.
      profile: steps of which a trace is written to `workdir`/profile, for xprof.
      watchdog_seconds: without progress, after which this process is ended with exit code 70; 0: never. See
        training/watchdog.py.
    Raises:
      ConfigError: a sentence, for what cannot be run.
      Stopped: after SIGTERM or Ctrl-C, with the state saved. It is a KeyboardInterrupt, so that a loop over runs ends.
      Diverged, CheckpointError, MetricsError, ImagesError, StoreError: sentences, for what went wrong.
    """
    given = Given(backbone=backbone, method=method, optimizer=optimizer, augment=augment)
    source = None if images is None else configs.call(as_source, {}, "images", images)
    where = configs.call(paths.path, {}, "workdir", workdir)
    compiled.keep(where if jax.process_count() > 1 else None)
    activity = Activity("starting")
    with contextlib.ExitStack() as the_end:
        the_end.enter_context(watchdog.watching(activity, where, watchdog_seconds))
        return _pretrain(the_end, config, source, where, given, begin, on_metrics, profile, activity)


def _pretrain(
    the_end: contextlib.ExitStack,
    given_config: ConfigDict,
    given_source: Source | None,
    workdir: AnyPath,
    given: Given,
    begin: Backbone | None,
    on_metrics: OnMetrics | None,
    profile: Profile | None,
    activity: Activity,
) -> Run:
    termination = the_end.enter_context(Termination())
    facts.check_processes(given_config, workdir)
    beginning = Beginning(given_config, workdir, given, begin)
    saved = config_file.saved(workdir)
    given_config, source = measured_with_images(given_config, given_source, saved, beginning.backbone)
    config = configs.parse(given_config)
    configs.check_devices(config.batch_size, jax.device_count())
    source = reading.whole_source(config) if source is None else source
    reading.check_batch(config, source)
    of_source = facts.of_source(source, given=given_source is not None)
    images: dict[str, Any] = {"num_images": len(source), "images_digest": of_source["digest"]}
    weights_digest = beginning.facts and beginning.facts["digest"]
    dist.check_same(images | {"classes": list(source.class_names), "digest of config.begin": weights_digest})
    schedule = build.schedule(config, len(source), len(source.class_names))
    training = build.training(config, schedule, given)
    begin = beginning.backbone(config)
    constants = {name: digest(value) for name, value in training.method.constants.items()}
    dist.check_same(constants)
    of_run = {"source": of_source, **describe(config, given), "constants": constants}
    of_run |= {"begin": beginning.facts} if beginning.facts else {}
    config_file.claim(workdir, given_config)
    facts.check_images(workdir, **images)
    facts.check_given(workdir, of_run)
    facts.check_constants(workdir, constants)
    check_held = the_end.enter_context(lock.alone(workdir))

    if dist.is_first():
        resolution.warn(config, source, [crop for one in training.each for crop in one.augmentations])
    normalization = reading.normalization(config)
    source = Uniform(source, normalization)
    loop = Loop(config, training, source, workdir, termination, begin, activity)
    state = loop.restore()
    start = int(state.step)
    if profile is not None:
        profiling.check(profile, start + 1, schedule.steps)
    first = dist.is_first()
    writer = the_end.enter_context(MetricsWriter(workdir, start, check_held)) if first else None
    if writer:
        loop.checkpoints.before_commit = writer.sync
    evaluate = make_online_knn(config, normalization, source, training.method, loop.mesh)
    if begin is not None:
        if first and beginning.facts:
            print(show(beginning.facts, begin, config), flush=True)
        accuracy = evaluate and evaluate(state)
        if writer and accuracy is not None:
            writer.write(0, {"knn_top1": accuracy})
            print(f"kNN {accuracy:.1f}% before the first step", flush=True)
    if start == 0:
        state = loop.prepare(state)
    batches = read_batches(config, source, training, seed=config.seed, start_step=start)
    note = functools.partial(
        facts.describe, workdir, seed=config.seed, skipped=batches.skipped, num_images=len(source), **of_run
    )
    if start < schedule.steps:  # a run that is finished stays as it was described
        note()
    print_banner(config, of_run, schedule, start)
    save_views = functools.partial(views.save, workdir, config, normalization, source, training.at(start).views)
    state = loop.run(
        state,
        batches,
        writer,
        evaluate=evaluate,
        on_metrics=on_metrics,
        on_first_batch=save_views if first else lambda batch: None,
        profile=profile,
    )
    if start < schedule.steps:
        note()
    method = training.method
    variables = dist.gather_state(method.backbone_variables(state.params, state.model_state), loop.mesh)
    further = dist.gather_state(method.further_variables(state.params, state.model_state), loop.mesh)
    views.save_pictures(workdir, config, normalization, training.at(schedule.steps), next(batches), state, loop.mesh)
    if writer:
        writer.close()
        save_backbone(workdir, config, variables, of_run, schedule.steps)
        save_further(workdir, config, further, of_run, schedule.steps)
        print(f"finished: step {schedule.steps} of {schedule.steps}; the backbone is {workdir / weights.FILE}")
    dist.wait_for_all("finished")
    return Run(workdir, load_backbone(workdir, model=given.backbone))


def describe(config: Config, given: Given) -> dict[str, Any]:
    """What run.json says of the backbone, the method, the optimizer and the augmentation of a run.

    Each has a name, and whether a script gave it. Their digests are in the name: a module's and a dataclass's options,
    the structure of an optimizer's state.
    """
    optimizer = config.optimizer["name"]
    if given.optimizer is not None:
        state = jax.eval_shape(given.optimizer.init, {"w": jax.ShapeDtypeStruct((1,), "float32")})
        optimizer = str(jax.tree.structure(state))
    return {
        "backbone": _fact(
            given.backbone, named(given.backbone) if given.backbone is not None else config.model["name"]
        ),
        "method": _fact(given.method, called(given.method) if given.method is not None else config.method["name"]),
        "optimizer": _fact(given.optimizer, optimizer),
        "augment": _fact(given.augment, called(given.augment) if given.augment is not None else sorted(config.augment)),
    }


def _fact(given: Any, name: Any) -> dict[str, Any]:
    return {"name": name, "given": given is not None}


def called(thing: Any) -> str:
    """How run.json calls a function, a partial of it, a dataclass's instance, or a dict of such."""
    if isinstance(thing, functools.partial):
        options = ", ".join(
            [*map(called, thing.args), *(f"{key}={called(value)}" for key, value in thing.keywords.items())]
        )
        return f"{called(thing.func)}({options})"
    if isinstance(thing, Mapping):
        return json.dumps({key: called(value) for key, value in cast(Mapping[str, Any], thing).items()})
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        fields = ", ".join(f"{field.name}={called(getattr(thing, field.name))}" for field in dataclasses.fields(thing))
        return f"{type(thing).__name__}({fields})"
    return getattr(thing, "__qualname__", None) or repr(thing)


def print_banner(config: Config, of_run: Mapping[str, Any], schedule: Schedule, start: int) -> None:
    here, everywhere = jax.local_device_count(), jax.device_count()
    platform = jax.devices()[0].platform
    print(
        f"process {jax.process_index() + 1} of {jax.process_count()}: {here} {platform} device(s) here, mesh "
        f"{dist.AXIS}={everywhere}, batch {schedule.batch_size} = {everywhere} x {schedule.batch_size // everywhere}",
        flush=True,
    )
    if dist.is_first():
        method, source, backbone = (of_run[name]["name"] for name in ("method", "source", "backbone"))
        what = "windows" if config.data.window else "images"
        print(f"{method} on {source}: {schedule.num_images:,} {what}, {backbone}")
        if start == schedule.steps:
            print(f"all {schedule.steps} steps are done already", flush=True)
        else:
            print(f"steps {start + 1} to {schedule.steps}, {schedule.steps_per_epoch} steps an epoch")
            print("compiling the train step ...", flush=True)


def save_further(
    workdir: AnyPath, config: Config, variables: Mapping[str, Any], of_run: Mapping[str, Any], steps: int
) -> None:
    """The further networks of the run, each in students/NAME as `save_backbone` writes the first."""
    models = teachers.further_models(config)
    for name, of_network in variables.items():
        directory = workdir / STUDENTS / name
        paths.make_directory(directory)
        save_backbone(directory, config, of_network, of_run, steps, models.get(name, {"given": name}))


def save_backbone(
    directory: AnyPath,
    config: Config,
    variables: Any,
    of_run: Mapping[str, Any],
    steps: int,
    model: Mapping[str, Any] | None = None,
) -> None:
    """model: name and options of the network; None: the run's backbone."""
    data, backbone = config.data, of_run["backbone"]
    of_backbone = {"given": backbone["name"]} if backbone["given"] else build.model_options(config)
    meta = {
        "model": of_backbone if model is None else model,
        "image_size": list(data.image_size),
        "channels": data.channels,
        "bands": list(data.bands),
        "pages": data.pages,
        "window": data.window,
        **dataclasses.asdict(reading.normalization(config)),
        "method": of_run["method"]["name"],
        "source": of_run["source"],
        "step": steps,
    }
    meta |= {"begin": of_run["begin"]} if "begin" in of_run and model is None else {}
    weights.save_backbone(directory, jax.device_get(variables), meta)
