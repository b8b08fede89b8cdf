"""What the protocols ask of the features and labels that they are given."""

import numpy as np
from jaxtyping import Float, Integer

# Features of patches may be large: looked through by so many rows at a time, not all at once.
ROWS = 1024


def check_labeled(
    name: str,
    features: Float[np.ndarray, "images *places dim"],
    labels: Integer[np.ndarray, "labels"],
    num_classes: int,
) -> None:
    """Raises ValueError unless the features are finite and each image has one of the labels 0 .. num_classes - 1."""
    if len(features) != len(labels):
        raise ValueError(f"{name}: {len(features)} rows of features but {len(labels)} labels; give one label a row")
    if len(labels) == 0:
        raise ValueError(f"{name}: no images; the protocol needs some")
    unlabeled = int(np.sum(labels < 0))
    if unlabeled:
        raise ValueError(f"{name}: {unlabeled} of {len(labels)} labels are negative: unlabeled; leave those out")
    if labels.max() >= num_classes:
        raise ValueError(f"{name}: label {labels.max()} where num_classes is {num_classes}; labels count from 0")
    check_finite(name, features)


def check_finite(name: str, features: Float[np.ndarray, "images *places dim"]) -> None:
    """Raises ValueError if a row of features has a NaN or infinity: those would win or lose every comparison."""
    chunks = (features[start : start + ROWS] for start in range(0, len(features), ROWS))
    broken = sum(int(np.sum(~np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1))) for chunk in chunks)
    if broken:
        remedy = "look at the backbone" + (", or keep float32" if features.dtype == np.float16 else "")
        raise ValueError(f"{name}: {broken} of {len(features)} rows of features are not finite; {remedy}")


def check_same_dim(
    train_features: Float[np.ndarray, "train *places _"], test_features: Float[np.ndarray, "test *places _"]
) -> None:
    """Raises ValueError if the two sets of features cannot be compared."""
    train, test = train_features.shape[-1], test_features.shape[-1]
    if train != test:
        raise ValueError(f"train and test features have {train} and {test} dimensions; take one backbone for both")
