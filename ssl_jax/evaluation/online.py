"""kNN accuracy of the features during training, on images of the training split alone."""

from collections.abc import Callable

import jax
import numpy as np

from ssl_jax import dist
from ssl_jax.config import Config
from ssl_jax.data import augment, pipeline, sources
from ssl_jax.evaluation import knn
from ssl_jax.evaluation.features import extract
from ssl_jax.methods import Method
from ssl_jax.training.state import TrainState

BATCH = 512


def make_online_knn(
    config: Config, source: sources.Source, method: Method, everywhere: dist.Mesh
) -> Callable[[TrainState], float | None] | None:
    """A function: state -> kNN accuracy in percent, where training images are looked up among other training images.

    Each process reads and embeds a part of the images on its own devices; all get the same accuracy. The accuracy is
    None if fewer than k of the bank's images have a label.

    Returns: the function; None without labels or without config.evaluate_every, and if the bank has fewer than k
      images, which is printed.
    """
    if not source.class_names or not config.evaluate_every:
        return None
    options, data = config.online_knn, config.data
    chosen = np.random.default_rng(config.seed).permutation(len(source))[: options.bank + options.queries]
    bank = len(chosen) - len(chosen) * options.queries // (options.bank + options.queries)
    if options.k > bank:
        if dist.is_first():
            print(
                f"no kNN while training: k={options.k}, and there are {bank} images to look among; lower "
                "config.online_knn.k"
            )
        return None
    share = sources.Subset(source, np.array_split(chosen, jax.process_count())[jax.process_index()])
    mesh = dist.make_local_mesh()
    features = dist.map_rows(
        lambda variables, images: method.backbone.apply(variables, augment.normalize(images, data.mean, data.std)), mesh
    )
    batch_size = -(-BATCH // mesh.size) * mesh.size

    def accuracy(state: TrainState) -> float | None:
        # The state may be sharded over devices. Only the backbone is gathered, as the whole state may not fit on one.
        backbone = method.backbone_variables(state.params, state.model_state)
        variables = dist.own_devices(dist.gather_state(backbone, everywhere), mesh)
        read = pipeline.eval_batches(share, image_size=data.image_size, batch_size=batch_size)
        part = extract(lambda images: features(variables, dist.shard_batch(images, mesh)), read, batch_size)
        h, labels = (dist.gather_rows(rows) for rows in part)
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
