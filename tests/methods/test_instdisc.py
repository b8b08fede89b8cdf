import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from ssl_jax.methods.toolkit import instances

NUM_IMAGES, NEGATIVES = 40, 30
INDEX = np.array([3, 39, 0, 17, 21, 8])
BATCH = {"views": (np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32),), "index": INDEX}


def make(**options):
    schedule = Schedule(batch_size=6, steps=20, steps_per_epoch=6, num_images=NUM_IMAGES)
    options = {"dim": 8, "temperature": 0.1, "negatives": 0} | options
    return METHODS["instdisc"](models.create("resnet8", stages=(1,)), schedule, **options)


METHODS_OF_TESTS = {
    "all": make(),
    "proximal": make(proximal=0.7),
    "nce": make(negatives=NEGATIVES, temperature=0.5),
    "softmax": make(negatives=NEGATIVES, softmax=True),
}


@functools.cache
def start():
    return jax.device_get(make().init(jax.random.key(1), BATCH["views"][0][:1]))


@jax.jit
def compiled(params, state, batch, rng):
    """The output of each method, the embeddings, not of unit length, and the negatives of `instances.loss`."""
    x = batch["views"][0]
    for name, module in make().networks.items():
        variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
        x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])

    def negatives(index):
        return jax.random.randint(jax.random.fold_in(jax.random.split(rng)[1], index), (NEGATIVES,), 0, NUM_IMAGES)

    steps = {name: method.loss(params, state, batch, rng) for name, method in METHODS_OF_TESTS.items()}
    return steps, x, jax.lax.map(negatives, batch["index"])


@functools.cache
def step(seed, log_z=-np.inf):
    """By `compiled`, from the first step's state but for log Z: outputs by method, embeddings, negatives."""
    params, state = start()
    state = {**state, "log_z": np.float32(log_z)}
    steps, z, negatives = jax.device_get(compiled(params, state, BATCH, jax.random.key(seed)))
    z = z.astype(np.float64)
    return steps, z / np.linalg.norm(z, axis=-1, keepdims=True), negatives


def log_softmax(x):
    return x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True))


def test_without_negatives_it_is_cross_entropy_with_all_images():
    _, state = start()
    steps, z, _ = step(2)
    output = steps["all"]
    bank = state["bank"].astype(np.float64)
    expected = -np.mean(log_softmax(z @ bank.T / 0.1)[np.arange(6), INDEX])
    np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(output.embeddings, [z, bank[INDEX]], atol=1e-6)
    # After use: half of the old row, half of the new embedding; the others stay.
    moved = 0.5 * bank[INDEX] + 0.5 * z
    np.testing.assert_allclose(
        output.state["bank"][INDEX], moved / np.linalg.norm(moved, axis=1, keepdims=True), atol=1e-6
    )
    others = np.setdiff1d(np.arange(NUM_IMAGES), INDEX)
    np.testing.assert_array_equal(output.state["bank"][others], state["bank"][others])


def own_and_negatives(z, drawn):
    """Cosines, float64: of each embedding with its own row, and with its negatives."""
    bank = start()[1]["bank"].astype(np.float64)
    return np.sum(z * bank[INDEX], axis=1), np.einsum("bd,bkd->bk", z, bank[drawn])


def test_noise_contrastive_estimation_with_a_constant_of_the_first_batch():
    assert np.isneginf(start()[1]["log_z"])
    log_z = None
    for seed in (2, 3):
        steps, z, drawn = step(seed) if log_z is None else step(seed, log_z)
        output = steps["nce"]
        own, negatives = (np.exp(s / 0.5) for s in own_and_negatives(z, drawn))
        if log_z is None:
            expected_log_z = np.log(NUM_IMAGES * np.mean(np.concatenate([own[:, None], negatives], axis=1)))
        noise = NEGATIVES / NUM_IMAGES
        p_own, p_negatives = own / np.exp(expected_log_z), negatives / np.exp(expected_log_z)
        expected = -np.mean(np.log(p_own / (p_own + noise)) + np.sum(np.log(noise / (p_negatives + noise)), axis=1))
        np.testing.assert_allclose(output.loss, expected, rtol=1e-5)
        log_z = float(output.state["log_z"])
        np.testing.assert_allclose(log_z, expected_log_z, rtol=1e-6)  # the second batch does not change it


def test_softmax_is_cross_entropy_among_the_own_row_and_the_negatives():
    steps, z, drawn = step(2)
    output = steps["softmax"]
    own, negatives = own_and_negatives(z, drawn)
    scores = np.concatenate([own[:, None], negatives], axis=1) / 0.1
    np.testing.assert_allclose(output.loss, -np.mean(log_softmax(scores)[:, 0]), rtol=1e-5)
    assert np.isneginf(output.state["log_z"])  # which it has no use for


def test_an_images_negatives_depend_on_its_index_alone():
    options = dict(num_images=NUM_IMAGES, negatives=5, softmax=True, temperature=1.0, axis_name=None)

    @jax.jit
    def run(z, bank, index):
        def value(rows):
            return instances.loss(z[rows], bank, index[rows], jax.random.key(0), jnp.zeros(()), **options)[0]

        return jax.lax.map(lambda i: value(i[None]), jnp.arange(6)), value(jnp.arange(6)), value(jnp.array([4, 1]))

    alone, together, two = jax.device_get(run(np.eye(8, dtype=np.float32)[:6], start()[1]["bank"], INDEX))
    np.testing.assert_allclose(together, np.mean(alone), rtol=1e-6)
    np.testing.assert_allclose(two, np.mean(alone[[4, 1]]), rtol=1e-6)


def test_proximal_adds_the_squared_distance_to_the_own_row():
    steps, *_ = step(2)
    plain, pulled = steps["all"], steps["proximal"]
    z, rows = plain.embeddings
    np.testing.assert_allclose(pulled.loss, plain.loss + 0.7 * np.mean(np.sum((z - rows) ** 2, axis=1)), rtol=1e-5)


def test_chance_level_is_the_loss_of_equal_embeddings():
    methods = [make(**options) for options in ({"negatives": 0}, {"negatives": 9, "softmax": True}, {"negatives": 9})]

    @jax.jit
    def run(z, bank, index):
        def loss(method):
            options = dict(num_images=NUM_IMAGES, negatives=method.negatives, softmax=method.softmax)
            log_z = instances.first_log_z()
            return instances.loss(z, bank, index, jax.random.key(0), log_z, temperature=0.1, axis_name=None, **options)[
                0
            ]

        return [loss(method) for method in methods]

    same = np.full((NUM_IMAGES, 4), 0.5, np.float32)
    losses = run(same[:6], same, INDEX)
    np.testing.assert_allclose([method.chance_level for method in methods], losses, rtol=1e-6)


def test_projector_is_one_layer_and_the_bank_no_parameter():
    params, state = start()
    assert jax.tree.map(jnp.shape, params["projector"]) == {"Dense_0": {"kernel": (16, 8), "bias": (8,)}}
    assert state["bank"].shape == (NUM_IMAGES, 8)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"negatives": -1}, "negatives must be at least 0, got -1"),
        ({"momentum": 1.5}, "momentum must be in 0..1, got 1.5"),
        ({"proximal": -1.0}, "proximal must be at least 0, got -1.0"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("options", [dict(negatives=0, softmax=True), dict(negatives=9, softmax=False)], ids=str)
def test_rows_that_no_image_has_do_not_count(options):
    z, bank = np.eye(8, dtype=np.float32)[:6], start()[1]["bank"]
    longer = np.concatenate([bank, np.ones_like(bank)])

    @jax.jit
    def run(z, bank, index):
        return instances.loss(
            z,
            bank,
            index,
            jax.random.key(0),
            instances.first_log_z(),
            num_images=NUM_IMAGES,
            temperature=0.1,
            axis_name=None,
            **options,
        )

    assert jax.device_get(run(z, longer, INDEX)) == jax.device_get(run(z, bank, INDEX))
