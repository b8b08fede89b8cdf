"""What methods refuse when they are made, besides keys that are out of their range."""

from typing import Protocol, runtime_checkable

from ssl_jax.methods.contract import Base, Schedule
from ssl_jax.models.abilities import has_feature_map, mean_of_map_is_h


@runtime_checkable
class Predicting(Protocol):
    """A method with a projector and a predictor, by the widths of their layers."""

    @property
    def projector(self) -> tuple[int, ...]: ...

    @property
    def predictor(self) -> tuple[int, ...]: ...


def check_queue(schedule: Schedule, queue_size: int, name: str = "queue_size", *, of_negatives: bool = True) -> None:
    """Raises: ValueError for a queue that batches do not fill evenly, or that is longer than the data set.

    of_negatives: whether the queue holds negatives. Any other queue may be longer than the data set.
    """
    if queue_size % schedule.batch_size:
        nearest = max(round(queue_size / schedule.batch_size), 1) * schedule.batch_size
        raise ValueError(f"{name}={queue_size} is not a multiple of batch_size={schedule.batch_size}; use {nearest}")
    if of_negatives and queue_size > schedule.num_images:
        most = schedule.num_images // schedule.batch_size * schedule.batch_size
        raise ValueError(
            f"{name}={queue_size} is longer than the data set of {schedule.num_images} images, so a "
            f"key's own image would be among its negatives; use {most} or less"
        )


def check_predictor(method: Predicting) -> None:
    """Raises: ValueError for a predictor whose output is not as wide as the projector's."""
    if method.predictor[-1] != method.projector[-1]:
        raise ValueError(
            f"predictor={method.predictor} ends in {method.predictor[-1]} dimensions, not in the projector's "
            f"{method.projector[-1]}; use {(*method.predictor[:-1], method.projector[-1])}"
        )


def check_feature_map(method: Base) -> None:
    """Raises: ValueError for a backbone without a feature map, or whose features are not the mean of its map."""
    if not has_feature_map(method.backbone):
        raise ValueError(
            f"{type(method).__name__} needs a feature map, which {type(method.backbone).__name__} "
            "does not have; use a ResNet, or give your own backbone a method feature_map(images, "
            "train, axis_name)"
        )
    if layers := getattr(method.backbone, "head_layers", 0):
        raise ValueError(
            f"{type(method).__name__} trains the mean of the feature map, and this backbone's features are taken after "
            f"{layers} further layers; use model.head_layers=0"
        )
    if not mean_of_map_is_h(method.backbone):
        raise ValueError(
            f"{type(method).__name__} trains the mean of the feature map, but a {type(method.backbone).__name__} of "
            'pool="mean" has other features: it normalizes after the mean; use model.pool="norm_mean"'
        )
