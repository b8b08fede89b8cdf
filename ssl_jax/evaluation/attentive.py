"""Attentive probes: a classifier that learns which patches to attend to.

Linear probes look at one token, or at the mean of the patches. Nothing makes a masked model gather an image's content
there.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Shaped

from ssl_jax.evaluation import sweep
from ssl_jax.evaluation._checks import check_labeled, check_same_dim
from ssl_jax.evaluation.labels import draw_labels
from ssl_jax.evaluation.many_heads import Params, Shape

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclasses.dataclass(frozen=True)
class AttentiveProbe:
    """The result of a probe: an entry for each seed, or a single one if it was given all labels.

    accuracies: on the test set, top-1 in percent.
    learning_rates: the chosen ones.
    predictions: classes of the test images, int32.
    """

    accuracies: tuple[float, ...]
    learning_rates: tuple[float, ...]
    predictions: Int[np.ndarray, "seeds test"]


def attentive_probe(
    train_tokens: Float[np.ndarray, "train tokens dim"],
    train_labels: Integer[np.ndarray, "train"],
    test_tokens: Float[np.ndarray, "test tokens dim"],
    test_labels: Integer[np.ndarray, "test"],
    *,
    num_classes: int,
    heads: int,
    per_class: int | None,
    seeds: Sequence[int] = (0, 1, 2),
    learning_rates: Sequence[float] = LEARNING_RATES,
    steps: int = 2000,
    batch_size: int = 256,
    groups: Shaped[np.ndarray, "train"] | None = None,
) -> AttentiveProbe:
    """Test accuracy of a learned query that attends to frozen patch tokens, with a linear classifier on its output.

    The probe is: standardized tokens -> keys and values (linear, without bias) -> multi-head attention of one query ->
    classes (linear). Tokens are standardized over the whole training set, which needs no labels (the paper uses
    BatchNorm without scale and shift). Probes are trained at all learning rates side by side. The one with the least
    cross entropy on a fifth of the drawn labels is trained again on all drawn labels.

    Args:
      train_tokens, test_tokens: finite; float16 halves their memory. They stay on the host except for one batch.
      train_labels, test_labels: in 0 .. num_classes - 1. Test labels only serve to count the hits.
      heads: of the attention, a divisor of dim; the paper uses the backbone's own number.
      per_class: as for `linear.linear_probe`, which draws the same images.
      seeds: one probe for each. A seed sets the draw, the initial weights and the order of the batches.
      learning_rates, steps, batch_size: of AdamW, see `sweep.training`. The defaults are for some thousand small
        images; they are from no paper.
      groups: what each training image belongs to, see `draw_labels`: none is on both sides of a choice.

    Raises: ValueError for numbers out of range, a class with fewer labels than per_class, features that are not finite.
    Source: El-Nouby et al. 2024, arXiv:2401.08541, section 4 and the authors' AttentionPoolingClassifier; a linear
      layer after cross-attention from a learned query, as in CAE (Chen et al. 2022, arXiv:2202.03026).
    """
    check_labeled("train", train_tokens, train_labels, num_classes)
    check_labeled("test", test_tokens, test_labels, num_classes)
    check_same_dim(train_tokens, test_tokens)
    dim = train_tokens.shape[-1]
    if not seeds or heads < 1 or dim % heads:
        raise ValueError(f"seeds must not be empty, got {seeds}, and heads must divide dim={dim}, got {heads}")
    fixed = sweep.standardization(train_tokens)
    chosen, predictions = [], []
    for seed in seeds[:1] if per_class is None else seeds:
        index, held_out = draw_labels(train_labels, num_classes, per_class, seed, groups)
        params = _first_params(jax.random.key(seed), heads, dim, num_classes)
        training = sweep.training(
            _logits, params, fixed, train_tokens, train_labels, steps=steps, batch_size=batch_size, seed=seed
        )
        fitted, rate = sweep.choose_and_fit(
            training, learning_rates, index[~held_out], index[held_out], batch_size=batch_size
        )
        batches = training.predict(fitted, test_tokens, batch_size=batch_size)
        predictions.append(np.concatenate(list(batches)))
        chosen.append(rate)
    accuracies = 100.0 * np.mean(np.stack(predictions) == test_labels, axis=-1)
    return AttentiveProbe(tuple(accuracies.tolist()), tuple(chosen), np.stack(predictions).astype(np.int32))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _first_params(rng: Array, heads: int, dim: int, num_classes: int) -> Params:
    """Initial parameters, as in the authors' code: a query near 0, which attends to all tokens alike."""
    query, key, value, classifier = jax.random.split(rng, 4)
    shape, limit = (dim, heads, dim // heads), 1 / math.sqrt(dim)
    return {
        "query": 0.02 * jax.random.normal(query, shape[1:]),
        "key": jax.random.uniform(key, shape, minval=-limit, maxval=limit),
        "value": jax.random.uniform(value, shape, minval=-limit, maxval=limit),
        "classifier": jax.random.uniform(classifier, (dim, num_classes), minval=-limit, maxval=limit),
        "bias": jnp.zeros(num_classes),
    }


def _logits(
    params: Params, fixed: Params, tokens: Float[Array, "batch tokens dim"], shape: Shape
) -> Float[Array, "batch classes"]:
    x = sweep.standardize(fixed, tokens)
    einsum = functools.partial(jnp.einsum, precision="highest")  # TPUs would multiply in bfloat16
    # The query is the same for all images, so it is multiplied with the key matrix once; no token's key is computed.
    # Likewise the value matrix is applied to the weighted average of the tokens, not to each token. The results are the
    # same, with 1 / (dim / heads) of the multiplications.
    probe = einsum("dhk,hk->hd", params["key"], params["query"]) / math.sqrt(params["query"].shape[-1])
    attention = jax.nn.softmax(einsum("hd,btd->bht", probe, x))
    values = einsum("bhd,dhk->bhk", einsum("bht,btd->bhd", attention, x), params["value"])
    return values.reshape(len(x), -1) @ params["classifier"] + params["bias"]
