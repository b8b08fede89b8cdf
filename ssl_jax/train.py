"""Pre-training: ssl_jax train --config simclr:tiny --workdir DIR [--config.KEY=VALUE ...]

Writes into DIR: config.json, run.json, metrics.jsonl, tensorboard/, checkpoints/, samples/, and at the end
backbone.safetensors with backbone.json. Started again with the same DIR it goes on where it was, on any number of
devices and processes. Every process of a run is started with the same command: launch/ has scripts for it.
"""

import collections
import contextlib
import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import build, files, parallel, run, step, weights
from ssl_jax import config as configs
from ssl_jax.checkpoint import CheckpointError, Checkpoints
from ssl_jax.data import augment, pipeline, sources
from ssl_jax.evaluation import knn
from ssl_jax.evaluation.features import extract
from ssl_jax.methods import Run
from ssl_jax.metrics import MetricsError, MetricsWriter

# Steps that the host may be ahead of the device: enough to hide its work, few enough to bound the memory of batches.
STEPS_AHEAD = 2
EVALUATION_BATCH = 512
VIEW_SAMPLES = 8


def train(
    config: ConfigDict, workdir: Path, *, source: sources.Source | None = None, begin: weights.Backbone | None = None
) -> bool:
    """Trains until the last step -> True, or until SIGTERM -> False, with the state saved.

    Args:
      source: the images, if they are not all of the config's training split; run.json says so.
      begin: a backbone whose weights it begins with, in place of the initialization.
    """
    with contextlib.ExitStack() as the_end:
        return _train_until(the_end, config, workdir, source, begin)


def _train_until(
    the_end: contextlib.ExitStack,
    config: ConfigDict,
    workdir: Path,
    source: sources.Source | None,
    begin: weights.Backbone | None,
) -> bool:
    termination = the_end.enter_context(run.Termination())
    run.check_processes(config, workdir)
    configs.check(config)
    configs.check_devices(config.batch_size, jax.device_count())
    data = config.data
    given = source is not None
    source = source if given else build.source(config)
    trained_on = run.source_facts(source, given=given)
    images = {"num_images": len(source), "images_digest": trained_on["digest"]}
    parallel.check_same(images | {"classes": list(source.class_names)})
    facts = build.facts(config, len(source), len(source.class_names))
    training = build.training(config, facts)
    method, views = training.method, training.views
    run.claim(workdir, config)
    run.check_images(workdir, **images)
    the_end.enter_context(run.alone(workdir))

    mesh, shard_state = parallel.make_mesh(), config.shard_state
    state = parallel.create_state(functools.partial(first_state, training, begin), mesh, shard_state=shard_state)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore(state) or state
    start = int(state.step)
    read = functools.partial(
        pipeline.train_batches,
        source,
        batch_size=config.batch_size,
        image_size=data.image_size,
        crops=[augmentation.crop for augmentation in training.augmentations],
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        memory_bytes=data.memory_bytes,
        threads=data.threads,
        prefetch=data.prefetch,
    )
    if start == 0 and training.prepare is not None:
        other = read(seed=config.seed + 1)  # than the first epoch's order and crops
        number = training.preparation
        state = prepare(training.prepare, number, state, other, mesh, termination, shard_state=shard_state)
        if state is None:
            return False
    batches = read(seed=config.seed, start_step=start)
    described = {"num_images": len(source), "source": trained_on}
    describe = functools.partial(run.describe, workdir, seed=config.seed, skipped=batches.skipped, **described)
    if start < facts.steps:  # a run that is finished stays as it was described
        describe()
    online_knn = make_online_knn(config, source, method, mesh)
    writer = MetricsWriter(workdir, start) if parallel.is_first() else None
    progress = run.Progress(
        writer,
        training.schedule,
        chance_level=method.chance_level,
        batch_size=config.batch_size,
        log_every=config.log_every,
        start=start,
        steps=facts.steps,
        stop_after_skipped=config.stop_after_skipped,
    )
    train_step = parallel.map_step(training.step, mesh, shard_state=shard_state)
    print_banner(config, source, facts, start)

    agree = parallel.Agreement(mesh, delay=STEPS_AHEAD)
    due = run.Timer(60.0 * config.checkpoint_minutes)
    ahead = collections.deque()
    for number in range(start + 1, facts.steps + 1):
        with progress.waiting_for_data():
            batch = next(batches)
        if number == 1 and parallel.is_first():
            save_views(workdir, config, source, views, batch)
        state, metrics = train_step(state, parallel.split_batch(batch, mesh))
        ahead.append(metrics["loss"])
        if len(ahead) > STEPS_AHEAD:
            ahead.popleft().block_until_ready()
        progress.step(number, metrics)
        checkpoints.check()
        accuracy = None
        if online_knn and config.evaluate_every and number % config.evaluate_every == 0:
            with progress.paused(state):
                accuracy = online_knn(state)
                if accuracy is not None:
                    progress.add(knn_top1=accuracy)
        stop, save = agree(termination.requested, due.passed())
        if save or stop or number % config.checkpoint_every == 0 or number == facts.steps:
            progress.flush()
            with progress.paused(state):
                checkpoints.save(number, state, accuracy)
            due.restart()
        if stop and number < facts.steps:
            checkpoints.close()
            if parallel.is_first():
                print(f"stopped by SIGTERM; step {number} is saved, and the same command goes on from there")
            return False
    checkpoints.close()
    if start < facts.steps:
        describe()
    backbone = parallel.gather_state(method.backbone_variables(state.params, state.model_state), mesh)
    draws = hasattr(method, "pictures")
    variables = parallel.gather_state((state.params, state.model_state), mesh) if draws else None
    if parallel.is_first():
        writer.close()
        if draws:
            save_pictures(workdir, config, method, views, next(batches), variables)
        save_backbone(workdir, config, backbone, facts.steps)
        print(f"finished: step {facts.steps} of {facts.steps}; the backbone is {workdir / 'backbone.safetensors'}")
    parallel.wait_for_all("finished")
    return True


def first_state(training: build.Training, begin: weights.Backbone | None) -> step.TrainState:
    state = training.create_state()
    return state if begin is None else step.with_backbone(state, begin.variables)


def prepare(
    one_step: step.TrainStep,
    number: int,
    state: step.TrainState,
    batches: Iterator[Any],
    mesh: parallel.Mesh,
    termination: run.Termination,
    *,
    shard_state: bool,
) -> step.TrainState | None:
    """The state after the pass of `number` batches that a method wants before its first step; None after SIGTERM.

    Its augmentations are others than the first epoch's.
    """
    if parallel.is_first():
        print(f"a pass over all images before the first step: {number} batches", flush=True)
    mapped = parallel.map_step(one_step, mesh, shard_state=shard_state)
    agree, ahead = parallel.Agreement(mesh, delay=STEPS_AHEAD), collections.deque()
    rng = state.rng
    state = state.replace(rng=jax.jit(lambda key: jax.random.fold_in(key, 1))(rng))
    for _ in range(number):
        state, metrics = mapped(state, parallel.split_batch(next(batches), mesh))
        ahead.append(metrics["loss"])
        if len(ahead) > STEPS_AHEAD:
            ahead.popleft().block_until_ready()
        (stop,) = agree(termination.requested)
        if stop:
            if parallel.is_first():
                print("stopped by SIGTERM before the first step; the same command begins again")
            return None
    return jax.jit(lambda state, rng: state.replace(step=state.step * 0, rng=rng))(state, rng)


def print_banner(config: ConfigDict, source: sources.Source, facts: Run, start: int) -> None:
    here, everywhere = jax.local_device_count(), jax.device_count()
    platform = jax.devices()[0].platform
    print(
        f"process {jax.process_index() + 1} of {jax.process_count()}: {here} {platform} device(s) here, mesh "
        f"{parallel.AXIS}={everywhere}, batch {facts.batch_size} = {everywhere} x {facts.batch_size // everywhere}",
        flush=True,
    )
    if parallel.is_first():
        print(f"{config.method.name} on {source.name}: {len(source):,} images, {config.model.name}")
        if start == facts.steps:
            print(f"all {facts.steps} steps are done already", flush=True)
        else:
            print(f"steps {start + 1} to {facts.steps}, {facts.steps_per_epoch} steps an epoch")
            print("compiling the train step ...", flush=True)


def make_online_knn(config: ConfigDict, source: sources.Source, method: Any, everywhere: parallel.Mesh) -> Any:
    """state -> kNN accuracy in percent of images of the training split among others of it; None without labels.

    Each process reads and embeds a part of the images on its own devices; all get the same accuracy. It is None where
    fewer than k of the bank's images have a label; a set that is too small for k is told at once.
    """
    if not source.class_names or not config.evaluate_every:
        return None
    options, data = config.online_knn, config.data
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: options.bank + options.queries]
    bank = len(chosen) - len(chosen) * options.queries // (options.bank + options.queries)
    if options.k > bank:
        if parallel.is_first():
            print(
                f"no kNN while training: k={options.k}, and there are {bank} images to look among; lower "
                "config.online_knn.k"
            )
        return None
    share = sources.Subset(source, np.array_split(chosen, jax.process_count())[jax.process_index()])
    mesh = parallel.make_local_mesh()
    features = parallel.map_rows(
        lambda variables, images: method.backbone.apply(variables, augment.normalize(images, data.mean, data.std)), mesh
    )
    batch_size = -(-EVALUATION_BATCH // mesh.size) * mesh.size

    def accuracy(state: step.TrainState) -> float:
        # Of what may be split over the devices only the backbone, as all of it need not fit on one.
        backbone = method.backbone_variables(state.params, state.model_state)
        variables = parallel.own_devices(parallel.gather_state(backbone, everywhere), mesh)
        read = pipeline.eval_batches(share, image_size=data.image_size, batch_size=batch_size)
        part = extract(lambda images: features(variables, parallel.split_batch(images, mesh)), read, batch_size)
        h, labels = (parallel.gather_rows(rows) for rows in part)
        h, labels = h[labels >= 0], labels[labels >= 0]
        num_queries = len(h) * options.queries // (options.bank + options.queries)
        if options.k > len(h) - num_queries:
            return None
        predicted = knn.weighted_knn(
            h[num_queries:],
            labels[num_queries:],
            h[:num_queries],
            num_classes=len(source.class_names),
            k=(options.k,),
            temperature=options.temperature,
        )[options.k]
        return 100.0 * float(np.mean(predicted == labels[:num_queries]))

    return accuracy


def save_views(workdir: Path, config: ConfigDict, source: sources.Source, views: Any, batch: Any) -> None:
    """samples/views.npz: the first images of the first batch, whole and as the augmentation makes them."""
    few = jax.tree.map(lambda rows: rows[:VIEW_SAMPLES], batch)
    subset = sources.Subset(source, few["index"])
    size = config.data.image_size
    original = next(iter(pipeline.eval_batches(subset, image_size=size, batch_size=VIEW_SAMPLES)))["image"]
    made = jax.jit(views)(jax.random.key(config.seed), few)["views"]
    largest = [show(view, config) for view in made if view.shape == made[0].shape]
    (workdir / "samples").mkdir(exist_ok=True)
    with files.replacing(workdir / "samples" / "views.npz") as file:
        np.savez(file, original=original, views=np.stack(largest, axis=1))


def save_pictures(
    workdir: Path, config: ConfigDict, method: Any, views: Any, batch: Any, variables: tuple[Any, Any]
) -> None:
    """samples/pictures.npz: what a method that draws makes of the batch's first images: {title: uint8 [n, h, w, c]}.

    `variables`: (parameters, model state).
    """
    rng = jax.random.key(config.seed)
    few = views(rng, jax.tree.map(lambda rows: rows[:VIEW_SAMPLES], batch))
    titles: list[str] = []

    @jax.jit
    def draw(*arguments):
        made = method.pictures(*arguments)
        titles.extend(made)  # in the method's order, which jit does not keep
        return list(made.values())

    rows = [show(images, config) for images in draw(*jax.device_get(variables), few, rng)]
    with files.replacing(workdir / "samples" / "pictures.npz") as file:
        np.savez(file, **dict(zip(titles, rows, strict=True)))


def show(images: Any, config: ConfigDict) -> np.ndarray:
    """Normalized images [..., channels] as uint8."""
    unit = np.asarray(images) * np.asarray(config.data.std) + np.asarray(config.data.mean)
    return np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)


def save_backbone(workdir: Path, config: ConfigDict, variables: Any, steps: int) -> None:
    data = config.data
    meta = {
        "model": build.model_options(config),
        "image_size": list(data.image_size),
        "channels": data.channels,
        "mean": list(data.mean),
        "std": list(data.std),
        "method": config.method.name,
        "step": steps,
    }
    weights.save_backbone(workdir, jax.device_get(variables), meta)


def main(argv: list[str] | None = None) -> None:
    with (
        parallel.leaving_on_error(),
        configs.user_errors(run.Diverged, CheckpointError, MetricsError, parallel.ProcessError, pipeline.ImagesError),
    ):
        flags = configs.read_flags(
            sys.argv[1:] if argv is None else argv,
            program="ssl_jax train: self-supervised pre-training",
            defaults=build.defaults,
            workdir="where the run's files go; a second start with the same one goes on (required)",
            coordinator="HOST:PORT of process 0, where neither SLURM nor a TPU pod says so; or JAX_COORDINATOR_ADDRESS",
            num_processes="how many processes the run has; or JAX_NUM_PROCESSES",
            process_id="which of them this is, from 0; or JAX_PROCESS_ID",
        )
        if not flags.workdir:
            raise configs.ConfigError("--workdir is missing; for example --workdir runs/first")
        parallel.start_processes(flags.coordinator, flags.num_processes, flags.process_id)
        train(flags.config, Path(flags.workdir))


if __name__ == "__main__":
    main()
