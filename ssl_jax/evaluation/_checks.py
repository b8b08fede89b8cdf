"""What the protocols ask of the features and labels that they are given."""

import numpy as np
from jaxtyping import Float, Integer


def check_labeled(
    name: str, features: Float[np.ndarray, "images dim"], labels: Integer[np.ndarray, "labels"], num_classes: int
) -> None:
    """Raises ValueError unless the features are finite and each image has one of the labels 0 .. num_classes - 1."""
    check_labels(name, len(features), labels, num_classes)
    check_finite(name, features)


def check_labels(name: str, rows: int, labels: Integer[np.ndarray, "labels"], num_classes: int) -> None:
    """Raises ValueError unless each of `rows` rows of features, one at least, has one of 0 .. num_classes - 1."""
    if rows != len(labels):
        raise ValueError(f"{name}: {rows} rows of features but {len(labels)} labels; give one label a row")
    if len(labels) == 0:
        raise ValueError(f"{name}: no images; the protocol needs some")
    unlabeled = int(np.sum(labels < 0))
    if unlabeled:
        raise ValueError(f"{name}: {unlabeled} of {len(labels)} labels are negative: unlabeled; leave those out")
    if labels.max() >= num_classes:
        raise ValueError(f"{name}: label {labels.max()} where num_classes is {num_classes}; labels count from 0")


def check_finite(name: str, features: Float[np.ndarray, "images dim"]) -> None:
    """Raises ValueError if a row of features has a NaN or infinity: those would win or lose every comparison."""
    broken = int(np.sum(~np.isfinite(features).all(axis=1)))
    if broken:
        raise ValueError(f"{name}: {broken} of {len(features)} rows of features are not finite; look at the backbone")


def check_same_dim(train_features: Float[np.ndarray, "..."], test_features: Float[np.ndarray, "..."]) -> None:
    """Raises ValueError if the two sets of features cannot be compared."""
    train, test = train_features.shape[-1], test_features.shape[-1]
    if train != test:
        raise ValueError(f"train and test features have {train} and {test} dimensions; take one backbone for both")
