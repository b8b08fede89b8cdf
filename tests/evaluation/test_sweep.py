import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.evaluation import sweep
from ssl_jax.evaluation.many_heads import Heads

RNG = np.random.default_rng(0)
DIM, CLASSES = 3, 3
CENTERS = np.array([[2, 0, 0], [0, 2, 0], [0, 0, 2]], np.float32)
TARGETS = RNG.integers(0, CLASSES, 60).astype(np.int32)
INPUTS = (CENTERS[TARGETS] + RNG.normal(size=(60, DIM))).astype(np.float16)
FITTED, HELD_OUT = np.arange(48), np.arange(48, 60)


def arrays(**given):
    return {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}


START = arrays(kernel=np.zeros((DIM, CLASSES)), bias=np.zeros(CLASSES))
RATES = (1e-6, 0.1, 0.03)


def linear(params, fixed, inputs, shape):
    return (inputs.astype(jnp.float32) * fixed["scale"]) @ params["kernel"] + params["bias"]


FIXED = arrays(scale=np.ones(DIM))


def training(inputs=INPUTS, targets=TARGETS, *, logits=linear, start=START, steps=20, batch_size=20, seed=0):
    return sweep.training(logits, start, FIXED, inputs, targets, steps=steps, batch_size=batch_size, seed=seed)


def trained(rows, rates, **options):
    grid = [(rate, sweep.WEIGHT_DECAY) for rate in rates]
    return jax.device_get(training(**options).train(rows, grid).params)


def fit(fitted=FITTED, held_out=HELD_OUT, rates=RATES, **options):
    heads, rate = sweep.choose_and_fit(training(**options), rates, fitted, held_out, batch_size=20)
    return {name: np.asarray(p)[0] for name, p in heads.params.items()}, rate


def test_heads_beside_each_other_are_those_alone():
    rates = (1e-3, 0.1, 0.03)
    together = trained(FITTED, rates)
    for i, rate in enumerate(rates):
        alone = trained(FITTED, (rate,))
        for name in START:
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-4, atol=1e-6)


def test_adamw_by_hand():
    """One step, of all the data at the whole rate: Adam's first is the gradient's sign."""
    rows = FITTED[:47]  # the classes are not equally frequent among them
    options = {"steps": 1, "batch_size": 100}
    residual = 1 / CLASSES - np.eye(CLASSES)[TARGETS[rows]]
    kernel = -0.1 * np.sign(INPUTS[rows].astype(np.float64).T @ residual)
    bias = -0.1 * np.sign(residual.sum(axis=0))
    found = trained(rows, (0.1,), **options)
    np.testing.assert_allclose(found["kernel"][0], kernel, rtol=1e-3)
    np.testing.assert_allclose(found["bias"][0], bias, rtol=1e-3)
    start = arrays(kernel=np.full((DIM, CLASSES), 2), bias=np.full(CLASSES, 2))  # of the same probabilities
    decayed = trained(rows, (0.1,), start=start, **options)
    np.testing.assert_allclose(decayed["kernel"][0], 2 + kernel - 0.1 * sweep.WEIGHT_DECAY * 2, rtol=1e-3)
    np.testing.assert_allclose(decayed["bias"][0], 2 + bias, rtol=1e-3)  # no decay


def test_held_out_labels_choose_the_rate_and_all_labels_are_fitted():
    params, rate = fit()
    assert rate == 0.1
    everything = trained(np.arange(60), (0.1,))
    np.testing.assert_allclose(params["kernel"], everything["kernel"][0], rtol=1e-4, atol=1e-6)
    # Labels held out that say the opposite: the rate that learns least is best.
    opposite = np.where(np.arange(60) >= 48, (TARGETS + 1) % 3, TARGETS)
    assert fit(targets=opposite)[1] == 1e-6


def test_what_is_no_class_changes_nothing():
    more = np.concatenate([INPUTS, 50 * INPUTS[:7]])
    unlabeled = np.concatenate([TARGETS, np.array([-1, 3, 255] * 2 + [-7], np.int32)])
    rows = {"fitted": np.append(FITTED, np.arange(60, 64)), "held_out": np.append(HELD_OUT, np.arange(64, 67))}
    expected, rate = fit(batch_size=100)  # all rows in each batch
    params, other_rate = fit(**rows, inputs=more, targets=unlabeled, batch_size=100)
    assert rate == other_rate
    # Sums over rows in another order round otherwise, which Adam enlarges: to 9e-4 also without the other rows.
    np.testing.assert_allclose(params["kernel"], expected["kernel"], atol=3e-3)


def test_every_row_is_seen_once_an_epoch():
    """Of a batch of one a step moves by its own input: which rows were seen can be read from the weights."""
    inputs, targets = np.eye(7, dtype=np.float32), np.zeros(7, np.int32)

    def head(params, fixed, inputs, shape):
        return inputs @ params["kernel"]

    for steps, seen in ((6, 6), (7, 7)):
        options = {"logits": head, "start": arrays(kernel=np.zeros((7, 2))), "steps": steps, "batch_size": 1}
        kernel = trained(np.arange(7), (0.1,), inputs=inputs, targets=targets, seed=3, **options)["kernel"]
        assert np.sum(np.abs(kernel[0, :, 0]) > 1e-3) == seen


def test_standardization_over_any_number_of_chunks(monkeypatch):
    maps = (5 + 100 * RNG.normal(size=(40, 2, 3, 4))).astype(np.float16)
    maps[..., 1] = 7
    expected = maps.reshape(-1, 4).astype(np.float64)
    for chunk in (2**26, 500, 1):
        monkeypatch.setattr(sweep, "CHUNK_BYTES", chunk)
        fixed = sweep.standardization(maps)
        np.testing.assert_allclose(fixed["mean"], expected.mean(axis=0), rtol=1e-5)
        std = expected.std(axis=0)
        np.testing.assert_allclose(fixed["scale"], np.divide(1, std, out=np.zeros(4), where=std > 0), rtol=1e-5)
        assert np.asarray(fixed["scale"])[1] == 0


def test_predictions_come_for_every_row():
    params = arrays(kernel=np.eye(3)[None], bias=np.zeros((1, 3)))
    batches = list(training().predict(Heads(params, (), FIXED), INPUTS, batch_size=25))
    assert [len(batch) for batch in batches] == [25, 25, 10]
    np.testing.assert_array_equal(np.concatenate(batches), INPUTS.argmax(axis=1))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rates": ()}, r"learning_rates must be one or more numbers above 0, got \(\)"),
        ({"rates": (0.1, 0.0)}, "learning_rates must be one or more numbers above 0"),
        ({"steps": 0}, "steps and batch_size must be at least 1, got 0 and 20"),
        ({"batch_size": 0}, "steps and batch_size must be at least 1, got 20 and 0"),
        ({"rates": (1e38, 2e38, 3e38), "steps": 3}, "diverged at each of the learning_rates"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        fit(**options)
