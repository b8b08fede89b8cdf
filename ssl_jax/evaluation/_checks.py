"""Checks of the features and labels that protocols are given."""

import numpy as np
from jaxtyping import Float, Integer

from ssl_jax.ops import check_finite


def check_labeled(
    name: str,
    features: Float[np.ndarray, "images *places dim"],
    labels: Integer[np.ndarray, "labels"],
    num_classes: int,
) -> None:
    """Raises ValueError unless the features are finite and each image has one of the labels 0 .. num_classes - 1."""
    if len(features) != len(labels):
        raise ValueError(
            f"{name}: {len(features)} rows of features but {len(labels)} labels; give one label for each row"
        )
    if len(labels) == 0:
        raise ValueError(f"{name}: no images; the protocol needs at least one")
    unlabeled = int(np.sum(labels < 0))
    if unlabeled:
        raise ValueError(
            f"{name}: {unlabeled} of {len(labels)} labels are negative (unlabeled); leave those images out"
        )
    if labels.max() >= num_classes:
        raise ValueError(
            f"{name}: label {labels.max()} is too large for num_classes={num_classes}; labels count from 0"
        )
    check_finite(name, features)


def check_same_dim(
    train_features: Float[np.ndarray, "train *places _"], test_features: Float[np.ndarray, "test *places _"]
) -> None:
    """Raises ValueError if the two sets of features have different dimensions."""
    train, test = train_features.shape[-1], test_features.shape[-1]
    if train != test:
        raise ValueError(f"train and test features have {train} and {test} dimensions; use one backbone for both")
