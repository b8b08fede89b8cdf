"""What the health metrics cost a training: python benchmarks/health.py [--config simclr:tiny] [--rounds 10]

Prints the seconds of a step without them (they are taken out of the program), of one that does not log, of one that
does, the mean over the steps from one that is logged to the next, and the ratio of that to the first. And, as the
difference may be less than the noise, the seconds of the health metrics by themselves, of as many random embeddings.
All take turns, the steps on the same images, and each one's fastest time counts, so that other load on the machine
falls on all of them.
"""

import argparse
import contextlib
import functools
import time
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.data import pipeline
from ssl_jax.health import panel
from ssl_jax.methods import Schedule
from ssl_jax.training import augmenting, build, reading, step
from ssl_jax.training.state import create_state

NEVER = 10**9


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="simclr:tiny")
    parser.add_argument("--rounds", type=int, default=10, help="times that each kind of step is measured")
    arguments = parser.parse_args()
    config = configs.get_config(arguments.config)
    without, unlogged, logged, alone = measure(config, arguments.rounds)
    averaged = unlogged + (logged - unlogged) / config.log_every
    print(f"{arguments.config}, batch of {config.batch_size}, {jax.devices()[0].platform}; seconds a step:")
    print(f"  without health metrics        {without:.4f}")
    print(f"  not logged                    {unlogged:.4f}")
    print(f"  logged                        {logged:.4f}")
    print(f"  with, one in {config.log_every:<4} logged        {averaged:.4f}")
    print(f"with / without {averaged / without:.4f}")
    share = alone / config.log_every / without
    print(f"the metrics by themselves {alone:.4f} s: {share:.4%} of the time without, one in {config.log_every} logged")


def measure(config, rounds):
    """Seconds of a step without health metrics, of one that does not log, of one that does, and of the metrics."""
    config = configs.parse(config)
    source, _ = reading.source_pair(config)
    facts = Schedule(config.batch_size, NEVER, len(source) // config.batch_size, len(source), len(source.class_names))
    method = build.method(config, facts)
    views = augmenting.augmentations(config, method.views)
    augment = augmenting.make_views(config, method, views)
    tx, _ = build.optimizer(config, facts.steps, method)
    mesh = dist.make_mesh()
    made = pipeline.train_batches(
        source,
        seed=config.seed,
        batch_size=config.batch_size,
        image_size=config.data.image_size,
        crops=[view.crop for view in views],
        memory_bytes=config.data.memory_bytes,
    )
    batch = dist.shard_batch(next(made), mesh)
    example = jnp.zeros((1, *views[0].size, config.data.channels))

    def prepared(log_every, patches):
        """A compiled step, and a state whose next step is not the first, which is always logged."""
        one_step = step.TrainStep(method=method, tx=tx, augment=augment, axis_name=dist.AXIS, log_every=log_every)
        mapped = dist.map_step(one_step, mesh)
        state = dist.replicate(create_state(method, tx, example, config.seed), mesh)
        with patches:  # while it is traced
            return mapped, jax.block_until_ready(mapped(state, batch))[0]

    none = mock.patch.multiple(panel, names=lambda views: (), measure=lambda embeddings, axis_name: {})
    kinds = [
        prepared(NEVER, none),
        prepared(NEVER, contextlib.nullcontext()),
        prepared(1, contextlib.nullcontext()),
    ]
    mapped, state = kinds[-1]
    state, metrics = mapped(state, batch)  # the old state was donated
    kinds[-1] = (mapped, state)
    embeddings = jax.random.normal(jax.random.key(0), (2, config.batch_size, int(metrics["embedding_dim"])))
    rows = PartitionSpec(None, dist.AXIS)
    health = functools.partial(panel.measure, axis_name=dist.AXIS)
    alone = jax.jit(jax.shard_map(health, mesh=mesh, in_specs=rows, out_specs=PartitionSpec()))
    jax.block_until_ready(alone(embeddings))

    seconds = [float("inf")] * 4
    for _ in range(rounds):
        for number, (mapped, state) in enumerate(kinds):
            seconds[number], (state, _) = faster(seconds[number], mapped, state, batch)
            kinds[number] = (mapped, state)
        seconds[-1], _ = faster(seconds[-1], alone, embeddings)
    return seconds


def faster(seconds, function, *arguments):
    """(the time that function(*arguments) takes, or `seconds` if that is less; its result)"""
    begun = time.perf_counter()
    result = jax.block_until_ready(function(*arguments))
    return min(seconds, time.perf_counter() - begun), result


if __name__ == "__main__":
    main()
