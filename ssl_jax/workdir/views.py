"""samples/views.npz and samples/pictures.npz: views that a run trains on, and pictures that its method draws."""

from typing import Any

import jax
import numpy as np

from ssl_jax import dist
from ssl_jax.config import Config
from ssl_jax.data import indices, pipeline, sources
from ssl_jax.data.normalization import Normalization
from ssl_jax.paths import AnyPath
from ssl_jax.workdir import samples

SHOWN = 8  # images


def save(
    workdir: AnyPath, config: Config, normalization: Normalization, source: sources.Source, views: Any, batch: Any
) -> None:
    """Writes views.npz: the first images of the first batch, whole, and their views."""
    few = jax.tree.map(lambda rows: rows[:SHOWN], batch)
    subset = sources.Subset(source, indices.on_host(few["index"]))
    size = config.data.image_size
    original = next(iter(pipeline.eval_batches(subset, image_size=size, batch_size=SHOWN)))["image"]
    made = jax.jit(views)(jax.random.key(config.seed), few)["views"]
    largest = [normalization.undone(view) for view in made if view.shape == made[0].shape]
    original = normalization.to_uint8(original)
    samples.save(workdir / samples.FOLDER, "views", original=original, views=np.stack(largest, axis=1))


def save_pictures(
    workdir: AnyPath,
    config: Config,
    normalization: Normalization,
    training: Any,
    batch: Any,
    state: Any,
    mesh: dist.Mesh,
) -> None:
    """Writes pictures.npz, if the method makes any: {title: uint8 [n, height, width, channels]} of the batch's first
    images. Every process must call it."""
    few = jax.tree.map(lambda rows: rows[:SHOWN], batch)
    titles: list[str] = []

    def draw(params: Any, model_state: Any, few: Any) -> list[Any]:
        rng = jax.random.key(config.seed)
        made = training.method.pictures(params, model_state, training.views(rng, few), rng)
        titles[:] = made  # in the method's order, which jit does not keep
        return list(made.values())

    if not jax.eval_shape(draw, state.params, state.model_state, few):
        return
    variables = dist.gather_state((state.params, state.model_state), mesh)
    if dist.is_first():
        rows = [normalization.undone(images) for images in jax.jit(draw)(*jax.device_get(variables), few)]
        samples.save(workdir / samples.FOLDER, "pictures", **dict(zip(titles, rows, strict=True)))
