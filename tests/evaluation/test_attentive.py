import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from ssl_jax.evaluation import attentive, sweep
from ssl_jax.evaluation.attentive import attentive_probe

CLASSES, TOKENS, DIM = 3, 6, 8


def hidden(images, seed):
    """One token of each image has the class, in 3 columns, and is marked in another; the others have loud noise there.

    Their noise sums to nearly three times the class's signal, so the mean hardly has it: attention must find the mark.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, images).astype(np.int32)
    tokens = rng.normal(size=(images, TOKENS, DIM))
    place, rows = rng.integers(0, TOKENS, images), np.arange(images)
    tokens[rows, place, :CLASSES] = np.eye(CLASSES)[labels]
    tokens[:, :, CLASSES] = 0.0
    tokens[rows, place, CLASSES] = 3.0
    return (5 + 10 * tokens).astype(np.float16), labels


TRAIN, TEST = hidden(900, 0), hidden(600, 1)
OPTIONS = {
    "num_classes": CLASSES,
    "heads": 2,
    "per_class": None,
    "learning_rates": (1e-2,),
    "steps": 300,
    "batch_size": 128,
}


def test_finds_the_patch_that_the_mean_drowns():
    probe = attentive_probe(*TRAIN, *TEST, **OPTIONS)
    means = [tokens.mean(axis=1, dtype=np.float32) for tokens, _ in (TRAIN, TEST)]
    of_mean = LogisticRegression().fit(means[0], TRAIN[1])
    assert probe.accuracies[0] > 95
    assert of_mean.score(means[1], TEST[1]) < 0.6
    assert probe.predictions.shape == (1, 600)
    assert probe.accuracies[0] == 100 * np.mean(probe.predictions[0] == TEST[1])


def test_a_head_is_cross_attention_of_one_query():
    params = attentive._first_params(jax.random.key(3), 2, DIM, CLASSES)
    params = {name: 2.0 * p + 0.1 for name, p in params.items()}
    tokens = np.asarray(TRAIN[0][:5], np.float32)
    fixed = sweep.standardization(tokens)
    x = (tokens - tokens.mean(axis=(0, 1))) / tokens.std(axis=(0, 1))
    keys, values = (jnp.einsum("btd,dhk->bthk", x, params[name]) for name in ("key", "value"))
    query = jnp.broadcast_to(params["query"], (5, 1, 2, DIM // 2))
    attended = nn.dot_product_attention(query, keys, values)[:, 0].reshape(5, DIM)
    expected = attended @ params["classifier"] + params["bias"]
    found = jax.jit(attentive._logits, static_argnums=3)(params, fixed, tokens, ())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_each_seed_draws_the_linear_probes_images_and_sees_no_others_labels():
    options = {**OPTIONS, "per_class": 10, "seeds": (0, 1), "steps": 20}
    probe = attentive_probe(*TRAIN, *TEST, **options)
    assert len(probe.accuracies) == len(probe.learning_rates) == len(probe.predictions) == 2
    assert not np.array_equal(*probe.predictions)
    # Test labels serve to count the hits alone.
    other = attentive_probe(*TRAIN, TEST[0], (TEST[1] + 1) % CLASSES, **options)
    np.testing.assert_array_equal(probe.predictions, other.predictions)
    assert probe.accuracies != other.accuracies


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "change, message",
    [
        ({"heads": 3}, "heads must divide dim=8, got 3"),
        ({"seeds": ()}, r"seeds must not be empty, got \(\)"),
        ({"per_class": 400}, "fewer than per_class 400"),
        ({"train_labels": TRAIN[1][:-1]}, "train: 900 rows of features but 899 labels"),
        ({"test_labels": TEST[1] - 1}, "of 600 labels are negative"),
        ({"num_classes": 2}, "label 2 is too large for num_classes=2"),
        ({"test_tokens": TEST[0][..., :4]}, "train and test features have 8 and 4 dimensions"),
        (
            {"train_tokens": np.full_like(TRAIN[0], np.nan)},
            "train: 900 of 900 rows .* not finite; check the backbone, or keep float32",
        ),
        ({"test_tokens": np.full_like(TEST[0], np.inf)}, "test: 600 of 600 rows .* not finite"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"train_tokens": TRAIN[0], "train_labels": TRAIN[1], "test_tokens": TEST[0], "test_labels": TEST[1]}
    with pytest.raises(ValueError, match=message):
        attentive_probe(**{**given, **OPTIONS, **change})
