"""kNN accuracy of the features during training, on images of the training split alone."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Int, Shaped

from ssl_jax import dist
from ssl_jax.config import Config
from ssl_jax.data import pipeline, sources
from ssl_jax.data.normalization import Normalization
from ssl_jax.data.order import DRAWN_BELOW, epoch_order
from ssl_jax.evaluation import knn
from ssl_jax.evaluation.features import extract
from ssl_jax.methods import Method
from ssl_jax.training.state import TrainState

BATCH = 512


def make_online_knn(
    config: Config, normalization: Normalization, source: sources.Source, method: Method, everywhere: dist.Mesh
) -> Callable[[TrainState], float | None] | None:
    """A function: state -> kNN accuracy in percent, where training images are looked up among other training images of
    other groups.

    Each process reads and embeds a part of the images on its own devices; all get the same accuracy. The accuracy is
    None if fewer than k of the bank's images have a label.

    Returns: the function; None without labels or without config.evaluate_every, and if the bank has fewer than k
      images, which is printed.
    """
    if not source.class_names or not config.evaluate_every:
        return None
    options, data = config.online_knn, config.data
    queries, bank = choose_images(len(source), options.queries, options.bank, config.seed, source.groups)
    if options.k > len(bank):
        if dist.is_first():
            print(
                f"no kNN while training: config.online_knn.k={options.k} is more than the {len(bank)} "
                f"images in the bank; use {len(bank)} or less"
            )
        return None
    own = np.array_split(np.concatenate([queries, bank]), jax.process_count())[jax.process_index()]
    share, asked = sources.Subset(source, own), np.isin(own, queries)
    mesh = dist.make_local_mesh()
    features = dist.map_rows(lambda variables, images: method.backbone.apply(variables, normalization(images)), mesh)
    batch_size = -(-BATCH // mesh.size) * mesh.size

    def accuracy(state: TrainState) -> float | None:
        # The state may be sharded over devices. Only the backbone is gathered, as the whole state may not fit on one.
        backbone = method.backbone_variables(state.params, state.model_state)
        variables = dist.own_devices(dist.gather_state(backbone, everywhere), mesh)
        read = pipeline.eval_batches(share, image_size=data.image_size, batch_size=batch_size)
        part = extract(lambda images: features(variables, dist.shard_batch(images, mesh)), read, batch_size)
        h, labels, query = (dist.gather_rows(rows) for rows in (part.features, part.labels, asked[part.index]))
        query, looked_up = query & (labels >= 0), ~query & (labels >= 0)
        if options.k > looked_up.sum() or not query.any():
            return None
        predicted = knn.weighted_knn(
            h[looked_up],
            labels[looked_up],
            h[query],
            num_classes=len(source.class_names),
            k=(options.k,),
            temperature=options.temperature,
        )[options.k]
        return 100.0 * float(np.mean(predicted == labels[query]))

    return accuracy


def choose_images(
    count: int, queries: int, bank: int, seed: int, groups: Shaped[np.ndarray, " images"] | None
) -> tuple[Int[np.ndarray, " queries"], Int[np.ndarray, " bank"]]:
    """(indices of the queries, of the bank): random images, at most so many, in the same proportion if there are fewer.

    No group has images on both sides. The bank goes without those of the last query's group.
    """
    if groups is None and count >= DRAWN_BELOW:
        order = epoch_order(np.arange(queries + bank), seed=seed, epoch=0, num_images=count)
    else:
        order = np.random.default_rng(seed).permutation(count)
    if groups is not None:  # in a random order of the groups
        _, group = np.unique(groups, return_inverse=True)
        order = order[np.argsort(np.random.default_rng(seed).permutation(group.max() + 1)[group[order]], kind="stable")]
    chosen = order[: queries + bank]
    asked, kept = np.split(chosen, [len(chosen) * queries // (queries + bank)])
    return asked, kept if groups is None else kept[~np.isin(groups[kept], groups[asked])]
