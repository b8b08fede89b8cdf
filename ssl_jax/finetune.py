"""Fine-tuning: a whole backbone and a classifier on it, trained on labelled images from where pre-training left it.

It is supervised training (methods/supervised.py) under the one train step, begun at given weights.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float, Int

from ssl_jax import optim, parallel, step
from ssl_jax.data import pipeline
from ssl_jax.data.augment import Augmentation, make_augment, normalize
from ssl_jax.data.sources import Source, Subset
from ssl_jax.evaluation.features import extract
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.methods import METHODS, Run
from ssl_jax.models.vit import ViT
from ssl_jax.weights import Backbone

EVALUATION_BATCH = 512


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a backbone is fine-tuned. The defaults are for small images and some hundred labels, and no paper's.

    Attributes:
      augmentation: of the training images; the test's are not augmented.
      steps: of the optimizer.
      batch_size: images a step over all devices; no more than there are to train on.
      learning_rates: of which the one is taken that has the least cross entropy on held-out labels.
      optimizer: as `optim.create` takes it, but for lr, final_lr (0) and steps.
      method: options of methods/supervised.py: label_smoothing, mixup, cutmix.
    """

    augmentation: Augmentation
    steps: int = 200
    batch_size: int = 128
    learning_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    optimizer: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: dict(name="adamw", weight_decay=0.05, warmup_steps=20, layer_decay=0.75)
    )
    method: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(f"steps and batch_size must be at least 1, got {self.steps} and {self.batch_size}")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates must be numbers above 0, got {self.learning_rates}")


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """accuracies: on the test set, top-1 in percent, [seeds, measured steps]. learning_rate: as chosen."""

    accuracies: Float[np.ndarray, "seeds measured"]
    learning_rate: float


def finetune(
    backbone: Backbone,
    train: Source,
    test: Source,
    *,
    recipe: Recipe,
    image_size: tuple[int, int],
    per_class: int | None,
    seeds: Sequence[int] = (0, 1, 2),
    measured: Sequence[int] = (),
    memory_bytes: int = 2**31,
) -> FineTuned:
    """Test accuracy of a fine-tuned backbone, for labels drawn once with each of `seeds`.

    The learning rate is chosen on a fifth of the first seed's labels; then all labels of each draw are trained on. The
    draws are those of the linear probe. The test set serves to count the hits, for nothing else.

    Args:
      backbone: where it begins; its own variables stay as they are.
      train, test: with labels, -1 for an image without one.
      image_size: (height, width) that images are read at.
      per_class: labels of each class that it is given, at least 2; None for all, drawn once.
      seeds: of the draw, of the classifier's first weights, and of order and augmentation.
      measured: steps at which the accuracy is measured; the last one if none are given.
      memory_bytes: of images that are kept decoded.
    Raises: ValueError for a source without labels, or a class with fewer than per_class.
    """
    if train.labels is None or test.labels is None:
        unlabeled = train if train.labels is None else test
        raise ValueError(f"{unlabeled.name} has no labels, which fine-tuning needs")
    seeds = seeds[:1] if per_class is None else seeds
    measured = tuple(measured) or (recipe.steps,)
    classes = len(train.class_names)
    draws = [draw_labels(train.labels, classes, per_class, seed) for seed in seeds]
    index, held_out = draws[0]
    trainer = _Trainer(backbone, recipe, classes, image_size, int(np.sum(~held_out)), memory_bytes)

    fitted, held = Subset(train, index[~held_out]), Subset(train, index[held_out])
    tried = {lr: _cross_entropy(*trainer.last_logits(fitted, held, lr, seeds[0])) for lr in recipe.learning_rates}
    best = min(tried, key=lambda lr: np.nan_to_num(tried[lr], nan=np.inf))  # it may have diverged

    accuracies = np.zeros((len(seeds), len(measured)), np.float32)
    for row, (seed, (index, _)) in enumerate(zip(seeds, draws, strict=True)):
        for number, state in trainer.train(Subset(train, index), best, seed, measured):
            logits, labels = trainer.logits(state, test)
            accuracies[row, measured.index(number)] = 100.0 * np.mean(np.argmax(logits, axis=1) == labels)
    return FineTuned(accuracies, best)


class _Trainer:
    """Compiled once for all learning rates and draws."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        classes: int,
        image_size: tuple[int, int],
        num_images: int,
        memory_bytes: int,
    ):
        self.backbone, self.recipe, self.image_size, self.memory_bytes = backbone, recipe, image_size, memory_bytes
        devices = jax.device_count()
        # An even number for each device, which mixup pairs.
        self.batch_size = min(recipe.batch_size, num_images) // (2 * devices) * 2 * devices
        if not self.batch_size:
            raise ValueError(
                f"{num_images} labelled images and a batch of {recipe.batch_size} are fewer than two for each of "
                f"{devices} devices; use fewer devices, or more labels"
            )
        run = Run(
            batch_size=self.batch_size,
            steps=recipe.steps,
            steps_per_epoch=num_images // self.batch_size,
            num_images=num_images,
            num_classes=classes,
        )
        model = backbone.model
        if isinstance(model, ViT):  # what it was pre-trained with need not divide this batch
            model = model.clone(microbatch=0, drop_path_group=0)
        self.method = METHODS["supervised"](model, run, **recipe.method)
        options = dict(recipe.optimizer)
        if not hasattr(backbone.model, "depth"):
            options.pop("layer_decay", None)  # known of ViTs
        tx, _ = optim.create(**options, lr=1.0, steps=recipe.steps, depth=getattr(backbone.model, "depth", 0))
        # The learning rate multiplies what the optimizer makes of the gradient, so it may be part of the state.
        self.tx = optax.chain(tx, optax.inject_hyperparams(optax.scale)(step_size=1.0))
        self.mesh = parallel.make_mesh()
        self.step = parallel.map_step(
            step.TrainStep(
                method=self.method,
                tx=self.tx,
                augment=make_augment([recipe.augmentation], mean=backbone.mean, std=backbone.std),
                axis_name=parallel.AXIS,
                log_every=recipe.steps + 1,
            ),
            self.mesh,
        )
        self.classify = parallel.map_rows(self._classify, self.mesh)

    def _classify(self, variables: Any, images: Any) -> Any:
        params, state = variables
        h = self.method.features(params, state, normalize(images, self.backbone.mean, self.backbone.std))
        return self.method.networks["classifier"].apply({"params": params["classifier"]}, h)

    def first_state(self, lr: float, seed: int) -> step.TrainState:
        example = jnp.zeros((1, *self.recipe.augmentation.size, len(self.backbone.mean)))
        state = step.create_state(self.method, self.tx, example, seed)
        given = jax.device_get(self.backbone.variables)  # the step donates its state: a copy, or the backbone is gone
        batch_stats = {**state.model_state["batch_stats"], "backbone": given.get("batch_stats", {})}
        state.opt_state[-1].hyperparams["step_size"] = jnp.float32(lr)
        return parallel.replicate(
            state.replace(
                params={**state.params, "backbone": given["params"]}, model_state={"batch_stats": batch_stats}
            ),
            self.mesh,
        )

    def train(
        self, source: Source, lr: float, seed: int, measured: Sequence[int]
    ) -> Iterator[tuple[int, step.TrainState]]:
        """(step, the state after it) for each of the measured steps."""
        state = self.first_state(lr, seed)
        if 0 in measured:
            yield 0, state
        batches = pipeline.train_batches(
            source,
            seed=seed,
            batch_size=self.batch_size,
            image_size=self.image_size,
            crops=[self.recipe.augmentation.crop],
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            memory_bytes=self.memory_bytes,
        )
        for number in range(1, self.recipe.steps + 1):
            state, metrics = self.step(state, parallel.split_batch(next(batches), self.mesh))
            metrics["loss"].block_until_ready()
            if number in measured:
                yield number, state

    def last_logits(self, fitted: Source, held: Source, lr: float, seed: int) -> Any:
        """(logits, labels) of held-out images after training."""
        for _, state in self.train(fitted, lr, seed, [self.recipe.steps]):
            return self.logits(state, held)

    def logits(
        self, state: step.TrainState, source: Source
    ) -> tuple[Float[np.ndarray, "images classes"], Int[np.ndarray, " images"]]:
        """Of the images with a label."""
        variables = (state.params, state.model_state)
        batch_size = -(-EVALUATION_BATCH // jax.device_count()) * jax.device_count()
        logits, labels = extract(
            lambda images: self.classify(variables, parallel.split_batch(images, self.mesh)),
            pipeline.eval_batches(source, image_size=self.image_size, batch_size=batch_size),
            batch_size,
        )
        return logits[labels >= 0], labels[labels >= 0]


def _cross_entropy(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> float:
    return float(jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels)))
