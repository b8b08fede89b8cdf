"""The first steps of a method by ssl_jax, for peer_steps.py: peer_steps_ours.py LIBRARY METHOD FOLDER

FOLDER gets start-METHOD.npz: the initial parameters and queue, the views of each step, and the losses.
"""

import dataclasses
import functools
import itertools
import sys
from pathlib import Path

import jax
import numpy as np
from flax import traverse_util
from peer_libraries import LIBRARIES
from peer_steps import FIRST

import ssl_jax
from ssl_jax import dist
from ssl_jax.data import pipeline
from ssl_jax.methods import toolkit
from ssl_jax.training import build, reading


def main():
    library, name, folder = LIBRARIES[sys.argv[1]], sys.argv[2], Path(sys.argv[3])
    # There, each view passes by itself, and BatchNorm has statistics of its own.
    toolkit.forward_views = apart(toolkit.forward_views)
    toolkit.forward_teacher = apart(toolkit.forward_teacher)
    config = library.config_of(name, 0)
    source, _ = reading.source_pair(config)
    training = build.training(config, build.schedule(config, len(source), len(source.class_names)))
    batches = pipeline.train_batches(
        source,
        seed=config.seed,
        batch_size=config.batch_size,
        image_size=config.data.image_size,
        crops=[augmentation.crop for augmentation in training.augmentations],
        memory_bytes=config.data.memory_bytes,
    )
    make_views = jax.jit(training.views)
    seen = [make_views(jax.random.key(step), batch) for step, batch in enumerate(itertools.islice(batches, FIRST))]
    mesh = dist.make_mesh()
    state = dist.replicate(training.create_state(), mesh)
    saved = {f"params/{path}": array for path, array in traverse_util.flatten_dict(state.params, sep="/").items()}
    if "queue" in state.model_state:
        saved["queue"] = state.model_state["queue"]["rows"]
    saved = jax.tree.map(np.asarray, saved)  # before the first step, which takes the state's memory
    mapped = dist.map_step(dataclasses.replace(training.step, augment=lambda rng, batch: batch), mesh)
    losses = []
    for batch in seen:
        state, metrics = mapped(state, dist.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    views = np.stack([np.stack(batch["views"]) for batch in seen])
    versions = f"ssl_jax {ssl_jax.__version__}, jax {jax.__version__}"
    np.savez(folder / f"start-{name}.npz", **saved, views=views, losses=losses, versions=versions)


def apart(forward):
    @functools.wraps(forward)
    def views_apart(*arguments, together, **options):
        return forward(*arguments, together=False, **options)

    return views_apart


if __name__ == "__main__":
    main()
