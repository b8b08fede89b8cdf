"""Fine-tuning: trains a pre-trained backbone, and a classifier on it, on labelled images.

It is supervised training (methods/supervised.py) with the usual train step, started from given weights.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float
from tqdm import tqdm

from ssl_jax import dist, optim
from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source, Subset
from ssl_jax.evaluation import tasks
from ssl_jax.evaluation.accuracy import class_mean, top1
from ssl_jax.evaluation.features import extract
from ssl_jax.evaluation.finetuning_recipes import AFTER_VIEWS, Recipe, augmented
from ssl_jax.evaluation.labels import Draw
from ssl_jax.methods import Schedule
from ssl_jax.models import abilities
from ssl_jax.training import step
from ssl_jax.training.averaged import Averaged
from ssl_jax.training.low_rank import LowRank
from ssl_jax.training.state import TrainState, begun
from ssl_jax.weights import Backbone

EVALUATION_BATCH = 512


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """accuracies: on the test set, top-1 in percent, [seeds, measured steps]. class_means: the same, but each class
    counts alike, see `evaluation.accuracy.class_mean`. learning_rate: the chosen one."""

    accuracies: Float[np.ndarray, "seeds measured"]
    class_means: Float[np.ndarray, "seeds measured"]
    learning_rate: float


def measure_finetuning(
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

    The learning rate is chosen on a fifth of the first seed's labels, or of their groups; then each training uses all
    labels of its draw.
    The draws are those of the linear probe. The test set only serves to count the hits.

    Args:
      backbone: where training starts; its own variables stay as they are.
      train, test: with labels, -1 for an image without one.
      image_size: (height, width) that images are read at.
      per_class: labels of each class that are used, at least 2; None for all, drawn once.
      seeds: of the draw, the classifier's initial weights, the order and the augmentation.
      measured: steps at which the accuracy is measured; the last one if none are given.
      memory_bytes: images are kept decoded in memory if they take no more than this.
    Raises: ValueError for a source without labels, or a class with fewer than per_class.
    """
    if train.labels is None or test.labels is None:
        unlabeled = train if train.labels is None else test
        raise ValueError(f"{unlabeled.name} has no labels, which fine-tuning needs")
    seeds = seeds[:1] if per_class is None else seeds
    measured = tuple(measured) or (recipe.steps,)
    task = tasks.Classes(train.class_names)
    draws = [task.draw(train, per_class, seed) for seed in seeds]
    trainer = _Trainer.of_draw(backbone, recipe, task, draws[0], image_size, memory_bytes)
    best, _ = trainer.choose(train, draws[0], seeds[0])
    accuracies, class_means = np.zeros((2, len(seeds), len(measured)), np.float32)
    for row, (seed, (index, _)) in enumerate(zip(seeds, draws, strict=True)):
        for number, state in trainer.train(Subset(train, index), best, seed, measured):
            logits, labels = trainer.outputs(state, test)
            predictions, place = np.argmax(logits, axis=1), (row, measured.index(number))
            accuracies[place], class_means[place] = top1(predictions, labels), class_mean(predictions, labels)
    return FineTuned(accuracies, class_means, best)


class Fitted:
    """A fine-tuned backbone and the linear layer on it.

    model, variables: of the backbone. kernel [dim, outputs], bias [outputs]: of the layer, in the units of the truth.
    tried: learning rate -> error on the held-out images; {} if there was only one rate. learning_rate: the chosen one.
    labels: how many images were trained on.
    """

    def __init__(self, trainer: "_Trainer", state: TrainState, rate: float, tried: dict[float, float], labels: int):
        self._trainer, self._state = trainer, state
        self.learning_rate, self.tried, self.labels = rate, tried, labels
        self.model: nn.Module = trainer.base.backbone
        params, model_state = trainer.kept(state)
        self.variables: Any = jax.device_get(trainer.method.backbone_variables(params, model_state))
        (layer,) = jax.device_get(params["classifier"]).values()
        scale, offset = trainer.task.units
        self.kernel, self.bias = np.asarray(layer["kernel"]) * scale, np.asarray(layer["bias"]) * scale + offset

    def outputs(self, source: Source) -> tuple[tasks.Outputs, tasks.Truth]:
        """(outputs in the units of the truth, truth) of the images that have something to predict."""
        (outputs, truth), (scale, offset) = self._trainer.outputs(self._state, source), self._trainer.task.units
        return outputs * scale + offset, truth


def fit(
    backbone: Backbone,
    train: Source,
    *,
    recipe: Recipe,
    image_size: tuple[int, int],
    per_class: int | None,
    seed: int = 0,
    memory_bytes: int = 2**31,
) -> Fitted:
    """Fine-tunes once, on classes, several labels or measurements, and returns what was trained.

    Arguments, errors and the draw of labels are those of `measure_finetuning` with this one seed. Of several labels and
    of measurements all images are used; per_class must be None.
    """
    task = tasks.of_source(train)
    draw = task.draw(train, per_class, seed)
    trainer = _Trainer.of_draw(backbone, recipe, task, draw, image_size, memory_bytes)
    best, tried = trainer.choose(train, draw, seed)
    ((_, state),) = trainer.train(Subset(train, draw[0]), best, seed, [recipe.steps])
    return Fitted(trainer, state, best, tried, len(draw[0]))


class _Trainer:
    """Fine-tunes a backbone. Compiled once for all learning rates and draws."""

    def __init__(
        self,
        backbone: Backbone,
        recipe: Recipe,
        task: tasks.Task,
        image_size: tuple[int, int],
        num_images: int,
        memory_bytes: int,
        most_images: int | None = None,
    ):
        """num_images: of the shortest training, most_images: of the longest, if that is another one."""
        self.backbone, self.recipe, self.image_size, self.memory_bytes = backbone, recipe, image_size, memory_bytes
        self.task = task
        devices = jax.device_count()
        # An even number of images for each device, as mixup pairs them.
        self.batch_size = min(recipe.batch_size, num_images) // (2 * devices) * 2 * devices
        if not self.batch_size:
            raise ValueError(
                f"{num_images} labelled images in batches of {recipe.batch_size} give fewer than two "
                f"for each of {devices} devices; use fewer devices, a larger batch or more labels"
            )
        run = Schedule(
            batch_size=self.batch_size,
            steps=recipe.steps,
            steps_per_epoch=num_images // self.batch_size,
            num_images=most_images or num_images,
            num_classes=len(task.names),
        )
        model = backbone.model
        # The groups of pre-training need not divide this batch.
        ungrouped: dict[str, Any] = {name: 0 for name in ("microbatch", "drop_path_group") if hasattr(model, name)}
        model = model.clone(**ungrouped)
        self.base = task.method(model.clone(**recipe.model), run, recipe.method)
        self.method = LowRank(self.base, recipe.lora_rank, recipe.lora_alpha) if recipe.lora_rank else self.base
        self.averaged = Averaged(self.method, recipe.ema_decay) if recipe.ema_decay else None
        options = dict(recipe.optimizer)
        depth = abilities.depth(backbone.model)
        if not depth:
            options.pop("layer_decay", None)  # it needs blocks
        tx, _ = optim.create(**options, lr=1.0, steps=recipe.steps, depth=depth)
        # The learning rate scales the optimizer's updates (lr=1.0 above), so it can be a number in the state, and one
        # compiled step serves all rates.
        self.tx = optax.chain(tx, optax.inject_hyperparams(optax.scale)(step_size=1.0))
        self.mesh = dist.make_mesh()
        self.step = dist.map_step(
            step.TrainStep(
                method=self.averaged or self.method,
                tx=self.tx,
                augment=augmented(recipe, backbone.normalization),
                axis_name=dist.AXIS,
                log_every=recipe.steps + 1,
            ),
            self.mesh,
        )
        self.classify = dist.map_rows(self._classify, self.mesh)

    @classmethod
    def of_draw(
        cls, backbone: Backbone, recipe: Recipe, task: tasks.Task, draw: Draw, image_size: tuple[int, int], memory: int
    ) -> "_Trainer":
        """A trainer for the labels of a draw; for those not held out if a learning rate is to be chosen."""
        index, held_out = draw
        count = int(np.sum(~held_out)) if len(recipe.learning_rates) > 1 else len(index)
        return cls(backbone, recipe, task, image_size, count, memory, len(index))

    def choose(self, train: Source, draw: Draw, seed: int) -> tuple[float, dict[float, float]]:
        """(the learning rate with the least error on the draw's held-out images, the error of each rate). If there is
        only one rate: (this rate, {})."""
        rates = self.recipe.learning_rates
        if len(rates) == 1:
            return rates[0], {}
        index, held_out = draw
        fitted, held = Subset(train, index[~held_out]), Subset(train, index[held_out])
        tried = {lr: self.task.error(*self.last_outputs(fitted, held, lr, seed)) for lr in rates}
        return min(tried, key=lambda lr: np.nan_to_num(tried[lr], nan=np.inf)), tried  # it may have diverged

    def _classify(self, variables: Any, images: Any) -> Any:
        params, state = variables
        h = self.method.features(params, state, jnp.asarray(self.backbone.normalization(images)))
        return self.base.networks["classifier"].apply({"params": params["classifier"]}, h)

    def kept(self, state: TrainState) -> tuple[Any, Any]:
        """(params, model state) of `method`: those that were averaged, if they are."""
        return self.averaged.averages(state.model_state) if self.averaged else (state.params, state.model_state)

    def first_state(self, lr: float, seed: int, truth: tasks.Truth | None = None) -> TrainState:
        """truth: of the images to train on, in order, if the method needs a table of it."""
        example = jnp.zeros((1, *self.recipe.augmentation.size, len(self.backbone.mean)))
        rng_init, rng = jax.random.split(jax.random.key(seed))
        params, model_state = self.base.init(rng_init, example)
        given = jax.device_get(self.backbone.variables)  # a copy, as the step donates its state
        own = given["params"]
        batch_stats = {**model_state["batch_stats"], "backbone": given.get("batch_stats", {})}
        params = {**params, "backbone": {k: own.get(k, first) for k, first in params["backbone"].items()}}
        model_state = {**model_state, "batch_stats": batch_stats}
        if self.recipe.classifier_std is not None:
            params["classifier"] = _drawn(params["classifier"], self.recipe.classifier_std, seed)
        if truth is not None and (table := self.task.table(truth)) is not None:
            model_state["table"] = model_state["table"].at[: len(table)].set(table)
        if isinstance(self.method, LowRank):
            params, model_state = self.method.begin(rng_init, params, model_state)
        if self.averaged:
            params, model_state = self.averaged.begin(params, model_state)
        state = begun(params, model_state, self.tx, rng)
        state.opt_state[-1].hyperparams["step_size"] = jnp.float32(lr)
        return dist.replicate(state, self.mesh)

    def train(self, source: Source, lr: float, seed: int, measured: Sequence[int]) -> Iterator[tuple[int, TrainState]]:
        """(step, the state after it) for each of the measured steps."""
        state = self.first_state(lr, seed, self.task.truth(source))
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
        steps = range(1, self.recipe.steps + 1)
        for number in tqdm(steps, f"fine-tuning at learning rate {lr:g}", unit=" steps", delay=1, leave=False):
            state, metrics = self.step(state, dist.shard_batch(next(batches), self.mesh))
            metrics["loss"].block_until_ready()
            if number in measured:
                yield number, state

    def last_outputs(self, fitted: Source, held: Source, lr: float, seed: int) -> Any:
        """(outputs, truth) of held-out images after the last step."""
        for _, state in self.train(fitted, lr, seed, [self.recipe.steps]):
            return self.outputs(state, held)

    def outputs(self, state: TrainState, source: Source) -> tuple[tasks.Outputs, tasks.Truth]:
        """(outputs, truth) of the images that have something to predict."""
        variables = self.kept(state)
        batch_size = -(-EVALUATION_BATCH // jax.device_count()) * jax.device_count()
        found = extract(
            lambda images: self.classify(variables, dist.shard_batch(images, self.mesh)),
            pipeline.eval_batches(source, image_size=self.image_size, batch_size=batch_size),
            batch_size,
        )
        truth = self.task.truth(source)[found.index]
        known = self.task.known(truth)
        return found.features[known], truth[known]


def _drawn(classifier: Any, std: float, seed: int) -> Any:
    """A classifier's parameters with newly drawn weights; its biases stay."""
    draw = nn.initializers.normal(std)
    key = jax.random.fold_in(jax.random.key(seed), AFTER_VIEWS)
    return jax.tree.map(lambda leaf: draw(key, leaf.shape) if leaf.ndim > 1 else leaf, classifier)
