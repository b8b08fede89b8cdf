import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from ssl_jax import losses
from tests.losses import checks

LIGHTLY = np.load(Path(__file__).parents[1] / "references" / "losses_contrastive.npz")


def lightly(name):
    return LIGHTLY[name].astype(np.float32)


def reference_sinkhorn(scores, epsilon, iterations):
    """The authors' loop on the matrix itself, in float64: prototypes first, then images."""
    q = np.exp(scores.astype(np.float64) / epsilon).T  # [prototypes, batch]
    prototypes, batch = q.shape
    q /= np.sum(q)
    for _ in range(iterations):
        q /= np.sum(q, axis=1, keepdims=True)
        q /= prototypes
        q /= np.sum(q, axis=0, keepdims=True)
        q /= batch
    return (q * batch).T


def draw_scores(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def test_sinkhorn_equals_the_authors_loop():
    scores, options = draw_scores(7, 4), [(1, 0.05), (2, 0.5), (3, 0.05), (10, 0.5)]
    run = jax.jit(lambda scores: [losses.sinkhorn(scores, iterations=i, epsilon=e) for i, e in options])
    for codes, (iterations, epsilon) in zip(run(scores), options, strict=True):
        expected = reference_sinkhorn(scores, epsilon, iterations)
        np.testing.assert_allclose(codes, expected, rtol=2e-5, atol=1e-7)  # exp of up to 20, a float32's 6e-8 each


def test_sinkhorn_and_swav_equal_lightly():
    codes = losses.sinkhorn(lightly("high")[0], epsilon=0.1, iterations=4)
    np.testing.assert_allclose(codes, LIGHTLY["sinkhorn"], rtol=1e-5, atol=1e-7)

    def loss(high, low, queue_scores=None):
        return losses.swav(high, low, queue_scores=queue_scores, temperature=0.2, epsilon=0.1, iterations=4)

    for name, queue in (("swav", ()), ("swav_queue", (lightly("queue_scores"),))):
        value, gradient = checks.value_and_grad(loss, lightly("high"), lightly("low"), *queue)
        np.testing.assert_allclose(value, LIGHTLY[f"{name}/value"], rtol=1e-5)
        np.testing.assert_allclose(gradient, LIGHTLY[f"{name}/gradient"], rtol=1e-4, atol=1e-6)


def test_sinkhorn_shares_the_batch_out_equally():
    # All images like prototype 0 most; in the end each of 4 prototypes has 12 / 4 images.
    scores = draw_scores(12, 4) + np.float32([2, 0, 0, 0])
    codes = np.asarray(losses.sinkhorn(scores, epsilon=0.5, iterations=100))
    np.testing.assert_allclose(np.sum(codes, axis=1), np.ones(12), rtol=1e-5)
    np.testing.assert_allclose(np.sum(codes, axis=0), np.full(4, 3.0), rtol=1e-4)


def sinkhorn_and_gradient(scores):
    """(codes, the gradient of the sum of their squares), of the default options"""
    codes, gradient = _sinkhorn_and_gradient(scores)
    assert codes.dtype == jnp.float32 and not np.any(gradient)
    return np.asarray(codes)


@jax.jit
def _sinkhorn_and_gradient(scores):
    def squares(scores):
        codes = losses.sinkhorn(scores)
        return jnp.sum(codes**2), codes

    gradient, codes = jax.grad(squares, has_aux=True)(scores)
    return codes, gradient


def test_sinkhorn_of_constant_scores_is_uniform():
    np.testing.assert_allclose(sinkhorn_and_gradient(np.full((6, 5), 0.7, np.float32)), np.full((6, 5), 0.2), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e4, 1e18])
def test_sinkhorn_is_finite_and_has_no_gradient_where_exp_overflows_and_prototypes_are_empty(scale):
    scores = draw_scores(6, 5) * np.float32(scale)
    scores[:, 2] = -scale * 3
    codes = sinkhorn_and_gradient(scores)
    assert np.all(np.isfinite(codes))
    np.testing.assert_allclose(np.sum(codes, axis=1), np.ones(6), rtol=1e-5)
    half = scores.astype(jnp.bfloat16)
    np.testing.assert_allclose(sinkhorn_and_gradient(half), sinkhorn_and_gradient(half.astype(np.float32)), rtol=1e-5)


def test_sinkhorn_with_weights_is_that_of_rows_left_out_and_repeated():
    scores = draw_scores(8, 4)
    weights = np.array([1, 0, 2, 1, 0, 0, 3, 1], np.float32)  # on four devices, the third has none that counts
    expected = reference_sinkhorn(np.repeat(scores, weights.astype(int), axis=0), 0.2, 3)
    first = (np.cumsum(weights) - weights).astype(int)
    split = PartitionSpec("i")
    sinkhorn = lambda scores, weights: losses.sinkhorn(scores, epsilon=0.2, weights=weights, axis_name="i")  # noqa: E731

    @jax.jit
    def run(*arrays):
        specs = dict(in_specs=(split, split), out_specs=split)
        return [jax.shard_map(sinkhorn, mesh=checks.mesh_of(count, 4), **specs)(*arrays) for count in (1, 4)]

    of_none = run(scores, np.zeros(8, np.float32))
    for codes, without_weight in zip(run(scores, weights), of_none, strict=True):
        codes = np.asarray(codes)
        np.testing.assert_allclose(codes[weights > 0], expected[first[weights > 0]], rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(np.sum(codes, axis=1), np.ones(8), rtol=1e-5)
        assert np.all(np.isfinite(without_weight))


@pytest.mark.usefixtures("unchecked")
def test_sinkhorn_refuses_weights_of_another_length():
    with pytest.raises(ValueError, match=r"weights must have one entry for each row of scores, got \(5,\), \(6, 4\)"):
        losses.sinkhorn(np.zeros((6, 4)), weights=np.ones(5))


def reference_labels(scores, lam, tolerance):
    """SeLa's: r and c of diag(r) P^lam diag(c), in float64, until c's changes are small; looked at each time."""
    p = np.exp(scores.astype(np.float64))
    p = (p / np.sum(p, axis=1, keepdims=True)).T ** lam  # [clusters, images]
    clusters, images = p.shape
    c, error, count = np.full(images, 1 / images), np.inf, 0
    while error >= tolerance:
        r = (1 / clusters) / (p @ c)
        new_c = (1 / images) / (r @ p)
        error, c, count = np.sum(np.abs(c / new_c - 1)), new_c, count + 1
    return np.argmax(r[:, None] * p * c, axis=0), count, (r[:, None] * p * c * images).T


def test_sinkhorn_with_a_tolerance_gives_selas_labels():
    scores = 3 * draw_scores(60, 5, seed=4)
    labels, count, expected = reference_labels(scores, lam=10.0, tolerance=0.1)
    assert 3 < count < 200 and np.any(labels != np.argmax(scores, axis=1))
    log_p = np.stack([log_softmax(row) for row in scores])

    @jax.jit
    def run(log_p):
        sinkhorn = functools.partial(losses.sinkhorn, log_p, epsilon=0.1)
        return [
            sinkhorn(iterations=iterations, tolerance=tolerance)
            for iterations, tolerance in ((200, 0.1), (count, 0.0), (2, 0.1), (2, 0.0))
        ]

    codes, as_many, few, two = jax.device_get(run(log_p))
    np.testing.assert_allclose(codes, expected, rtol=2e-4, atol=1e-6)
    np.testing.assert_array_equal(np.argmax(codes, axis=1), labels)
    np.testing.assert_array_equal(codes, as_many)  # neither more nor fewer iterations than the reference
    np.testing.assert_array_equal(few, two)


def test_sinkhorn_over_devices_is_that_of_the_whole_batch():
    split = PartitionSpec("i")

    @jax.jit
    def run(scores):
        found = []
        for tolerance, counts in ((0.0, (1, 2, 8)), (0.1, (2, 8))):
            sinkhorn = functools.partial(losses.sinkhorn, epsilon=0.1, iterations=20, tolerance=tolerance)
            on_device = functools.partial(sinkhorn, axis_name="i")
            specs = dict(in_specs=split, out_specs=split)
            on_devices = [jax.shard_map(on_device, mesh=checks.mesh_of(n), **specs)(scores) for n in counts]
            found.append((sinkhorn(scores), on_devices))
        return found

    for whole, on_devices in run(draw_scores(16, 5)):
        for codes in on_devices:
            np.testing.assert_allclose(codes, whole, rtol=1e-5, atol=1e-7)


def log_softmax(scores):
    return scores - np.log(np.sum(np.exp(scores)))


def reference_swav(high, low, codes, temperature):
    """Eq. 6 of the paper, from codes computed beforehand: view by view and image by image."""
    views = [*high, *low]
    terms = [
        -np.mean([codes[t][i] @ log_softmax(view[i] / temperature) for i in range(len(view))])
        for t in range(len(high))
        for v, view in enumerate(views)
        if v != t
    ]
    return np.mean(terms)


def swav(high, low=None, queue_scores=None, axis_name=None):
    options = dict(temperature=0.3, epsilon=0.2, axis_name=axis_name)
    return losses.swav(high, low, queue_scores=queue_scores, **options)


# Views in high and in low resolution, and rows of the queue.
SWAV = {"high alone": (2, 0, 0), "all": (2, 2, 4), "one": (1, 2, 0)}


def draw_swav(name, batch=6):
    high_views, low_views, queue = SWAV[name]
    high, low = draw_scores(high_views, batch, 4), draw_scores(low_views, batch, 4, seed=1)
    return [high, *[low] * (low_views > 0), *[draw_scores(high_views, queue, 4, seed=2)] * (queue > 0)]


@pytest.mark.parametrize("name", SWAV)
def test_swav_equals_the_papers_formula_with_codes_held(name):
    high, *others = draw_swav(name)
    _, queue_scores = [*others, *[np.zeros((len(high), 0, 4))] * 2][:2]
    codes = [reference_sinkhorn(rows, 0.2, 3)[:6] for rows in np.concatenate([high, queue_scores], axis=1)]

    def reference(high, low=(), queue_scores=None):
        return reference_swav(high, low, codes, 0.3)

    checks.equals_reference(swav, reference, high, *others, argnums=tuple(range(len(others) + 1)))


def test_swav_of_constant_scores_is_log_prototypes():
    value, _ = checks.value_and_grad(swav, np.full((2, 6, 4), 0.3, np.float32), argnums=(0,))
    np.testing.assert_allclose(value, np.log(4), rtol=1e-6)


def test_swav_of_clear_assignments():
    # Two images, two prototypes, codes hard: the other view says the same, or the opposite.
    same = np.eye(2)
    loss = functools.partial(losses.swav, temperature=0.5)
    right = np.log(1 + np.exp(-2.0))
    np.testing.assert_allclose(loss(np.stack([same, same])), right, rtol=1e-5)
    np.testing.assert_allclose(loss(np.stack([same, same[::-1]])), right + 2.0, rtol=1e-5)


@pytest.mark.parametrize("name, devices", [("high alone", (3,)), ("all", (2, 6))])
def test_swav_over_devices_is_that_of_the_whole_batch(name, devices):
    arrays = draw_swav(name)
    argnums, split = tuple(range(len(arrays))), [True, True, False][: len(arrays)]
    checks.same_on_devices(swav, *arrays, split=split, axes=[1] * len(arrays), argnums=argnums, devices=devices)


LABELS = np.array([2, -1, 0, 2, 1, -1, -1, 0], np.int32)  # devices have 2, 1 or none of those with a label
WEIGHTS = np.array([0.3, 2.0, 0.7], np.float32)


def reference_pseudo_label(scores, labels, weights, temperature):
    total = 0.0
    for i in np.flatnonzero(labels >= 0):
        for view in scores:
            total -= weights[labels[i]] * log_softmax(view[i] / temperature)[labels[i]] / len(scores)
    return total / np.sum(weights[labels[labels >= 0]])


def weighted(scores, labels, *weights, axis_name=None):
    weights = weights[0] if weights else None
    return losses.pseudo_label_cross_entropy(scores, labels, weights=weights, temperature=0.4, axis_name=axis_name)


@pytest.mark.parametrize("weights", [(), (WEIGHTS,)])
def test_pseudo_label_cross_entropy_equals_the_formula(weights):
    def reference(scores, labels, *weights):
        return reference_pseudo_label(scores, labels, weights[0] if weights else np.ones(3), 0.4)

    checks.equals_reference(weighted, reference, draw_scores(2, 8, 3), LABELS, *weights, argnums=(0,))


def test_pseudo_label_cross_entropy_of_known_scores():
    scores = np.stack([np.eye(3), np.zeros((3, 3))])  # one view tells the cluster, one nothing
    loss = functools.partial(losses.pseudo_label_cross_entropy, scores, temperature=0.5)
    tells = np.log(1 + 2 * np.exp(-2.0))
    np.testing.assert_allclose(loss(np.arange(3)), (tells + np.log(3)) / 2, rtol=1e-6)
    np.testing.assert_allclose(loss(np.array([1, -1, -1])), (tells + 2.0 + np.log(3)) / 2, rtol=1e-6)


def test_pseudo_label_cross_entropy_without_labels_is_zero():
    labels = np.full(8, -1, np.int32)
    value, (gradient,) = checks.value_and_grad(weighted, draw_scores(2, 8, 3), labels, argnums=(0,))
    assert value == 0.0 and np.all(gradient == 0.0)


@pytest.mark.parametrize("weights, devices", [((), (4,)), ((WEIGHTS,), (2, 8))])
def test_pseudo_label_cross_entropy_over_devices_is_that_of_the_whole_batch(weights, devices):
    split, axes = [True, True, False][: 2 + len(weights)], [1, 0, 0][: 2 + len(weights)]
    arrays = draw_scores(2, 8, 3), LABELS, *weights
    checks.same_on_devices(weighted, *arrays, split=split, axes=axes, argnums=(0,), devices=devices)


CENTROIDS = draw_scores(6, 4, seed=5) * np.array([1, 2, 3, 4, 5, 6], np.float32)[:, None]
CONCENTRATION = np.array([0.2, 0.4, 0.3, 0.25, 0.5, 0.35], np.float32)
ASSIGNMENTS = np.array([0, 3, 3, 5, 0, 3, 5, 5], np.int32)
NEGATIVES = np.array([1, 3, 4], np.int32)  # 3 is the batch's


def reference_pcl(embedding, centroids, candidates):
    unit = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    total = 0.0
    for i, z in enumerate(embedding):
        logits = unit @ z / np.linalg.norm(z) / CONCENTRATION
        total += np.log(np.sum(np.exp(logits[candidates]))) - logits[ASSIGNMENTS[i]]
    return total / len(embedding)


def pcl(embedding, centroids, assignments, *negatives, axis_name=None):
    concentration = jnp.asarray(CONCENTRATION)
    return losses.pcl_prototypes(embedding, centroids, concentration, assignments, *negatives, axis_name=axis_name)


PCL_ARRAYS = draw_scores(8, 4, seed=6), CENTROIDS, ASSIGNMENTS


# The gradient for the centroids is 0, that of the reference.
@pytest.mark.parametrize("negatives, candidates", [((), np.arange(6)), ((NEGATIVES,), [*ASSIGNMENTS, 1, 4])])
def test_pcl_prototypes_equals_the_papers_formula(negatives, candidates):
    checks.equals_reference(
        pcl,
        lambda z, *_: reference_pcl(z, CENTROIDS.astype(np.float64), candidates),
        *PCL_ARRAYS,
        *negatives,
        argnums=(0, 1),
    )


def test_pcl_prototypes_of_known_embeddings():
    # Each image on its own centroid, all at temperature 0.5: cosine 1 against three at 0, one of them a negative.
    args = np.eye(4), np.full(4, 0.5), np.arange(3)
    expected = np.log(np.exp(2.0) + 3) - 2.0
    np.testing.assert_allclose(losses.pcl_prototypes(np.eye(4)[:3], *args), expected, rtol=1e-6)
    np.testing.assert_allclose(losses.pcl_prototypes(np.eye(4)[:3], *args, np.array([3])), expected, rtol=1e-6)


@pytest.mark.parametrize("negatives, devices", [((), (4,)), ((NEGATIVES,), (2, 8))])
def test_pcl_prototypes_over_devices_is_that_of_the_whole_batch(negatives, devices):
    split = [True, False, True, False][: 3 + len(negatives)]
    checks.same_on_devices(pcl, *PCL_ARRAYS, *negatives, split=split, argnums=(0, 1), devices=devices)


def reference_smog(prediction, projection, groups, nearest, labels, beta, temperature):
    """Given which group each projection moves and each target belongs to."""
    new = groups.copy()
    for g in set(nearest):
        new[g] = beta * groups[g] + (1 - beta) * np.mean(projection[nearest == g], axis=0)
    unit = new / np.linalg.norm(new, axis=1, keepdims=True)
    logits = [unit @ p / np.linalg.norm(p) / temperature for p in prediction]
    return np.mean([-log_softmax(row)[label] for row, label in zip(logits, labels, strict=True)]), new


def nearest_group(z, groups):
    return np.array([np.argmax([r @ g / np.linalg.norm(g) for g in groups]) for r in z])


GROUPS = np.concatenate([draw_scores(4, 4, seed=7), [[-30, 0, 0, 0]]]).astype(np.float32)


def smog(*arrays, axis_name=None):
    return losses.smog(*arrays, beta=0.8, temperature=0.3, axis_name=axis_name)[0]


def test_smog_equals_the_papers_formula_with_assignments_held():
    prediction, projection, target = checks.draw(8, 4, 3, scale=2.0, noise=1.0)
    projection[:, 0] = np.abs(projection[:, 0])  # the last group, long as it is, has none of them
    nearest, labels = (nearest_group(z, GROUPS) for z in (projection, target))
    assert set(nearest) <= {0, 1, 2, 3} and len(set(nearest)) > 2 and np.any(nearest != labels)
    wide = GROUPS.astype(np.float64)
    held = functools.partial(reference_smog, nearest=nearest, labels=labels, beta=0.8, temperature=0.3)
    reference = lambda p, z, t, groups: held(p, z, wide)[0]  # noqa: E731
    arrays = prediction, projection, target, GROUPS
    # The gradient for the target and the groups is 0, that of the reference.
    checks.equals_reference(smog, reference, *arrays)

    @jax.jit
    def new_groups(*arrays):
        def sum_of(projection):
            groups = losses.smog(arrays[0], projection, *arrays[2:], beta=0.8)[1]
            return jnp.sum(groups), groups

        return jax.grad(sum_of, has_aux=True)(arrays[1])

    gradient, groups = new_groups(*arrays)
    np.testing.assert_allclose(groups, held(prediction, projection, wide)[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(groups[4], GROUPS[4])
    np.testing.assert_array_equal(gradient, np.zeros((8, 4)))


def test_smog_equals_lightly():
    def loss(z1, z, z2, groups):
        return losses.smog(z1, z, z2, groups, beta=0.9, temperature=0.2)

    arrays = [lightly(name) for name in ("z1", "z3", "z2", "groups")]
    (value, groups), gradient = jax.jit(jax.value_and_grad(loss, argnums=1, has_aux=True))(*arrays)
    np.testing.assert_allclose(value, LIGHTLY["smog/value"], rtol=1e-5)
    np.testing.assert_allclose(groups, LIGHTLY["smog/groups"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, LIGHTLY["smog/gradient"], rtol=1e-4, atol=1e-6)


def test_smog_over_devices_is_that_of_the_whole_batch():
    z = checks.draw(8, 4, 3)
    checks.same_on_devices(smog, *z, GROUPS, split=[True, True, True, False], argnums=(0, 1, 2, 3))
    split, whole = PartitionSpec("i"), PartitionSpec()

    @jax.jit
    def groups(*arrays):
        on_device = lambda *arrays: losses.smog(*arrays, axis_name="i")[1]  # noqa: E731
        specs = dict(in_specs=(split, split, split, whole), out_specs=whole)
        return jax.shard_map(on_device, mesh=checks.mesh_of(4, 4), **specs)(*arrays), losses.smog(*arrays)[1]

    found, expected = groups(*z, GROUPS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# self_classifier

SCORES = [draw_scores(2, 8, 3), draw_scores(2, 8, 3, seed=1)]
self_classifier = functools.partial(losses.self_classifier, temperature=0.4)


def reference_self_classifier(scores1, scores2):
    def softmax(x, axis):
        return np.exp(x / 0.4) / np.sum(np.exp(x / 0.4), axis=axis, keepdims=True)

    total = 0.0
    for first, second in zip(scores1, scores2, strict=True):
        for s, other in ((first, second), (second, first)):
            total -= np.sum(softmax(other, 0) * np.log(softmax(s, 1))) / len(s)
    return total / 2 / len(scores1)


def test_self_classifier_is_the_codes_formula():
    checks.equals_reference(self_classifier, reference_self_classifier, *SCORES)


def test_self_classifier_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(self_classifier, *SCORES, axes=[1, 1], devices=(1, 2, 8))


@pytest.mark.parametrize("images", [6, 12])
def test_self_classifier_is_least_for_classes_of_equal_size(images):
    # Clear classes of equal size: each image's own class has a target of classes / images and a probability of 1.
    own = np.eye(3, dtype=np.float32)[np.arange(images) % 3][None]
    np.testing.assert_allclose(losses.self_classifier(own, own, temperature=0.01), 0.0, atol=1e-6)
    # One class for all: that class has targets of 1 / images, and so have the others.
    one = np.repeat(own[:, :1], images, axis=1)
    value = losses.self_classifier(one, one, temperature=0.1)
    np.testing.assert_allclose(value, 2 / images * 10.0, rtol=1e-3)  # log p of the others: -10
    none = losses.self_classifier(0 * own, 0 * own)
    np.testing.assert_allclose(none, 3 / images * np.log(3), rtol=1e-5)


EXAMPLES = {  # loss, arrays, those that have a batch that is scaled, axis of each, and those with a gradient
    "swav": (swav, draw_swav("all"), (0, 1, 2), [1, 1, 1], (0, 1, 2)),
    "pseudo labels": (weighted, [draw_scores(2, 8, 3), LABELS], (0,), [1, 0], (0,)),
    "self_classifier": (self_classifier, SCORES, (0, 1), [1, 1], (0, 1)),
    "pcl": (pcl, PCL_ARRAYS, (0, 1), [0, 0, 0], (0, 1)),
    "pcl, negatives": (pcl, [*PCL_ARRAYS, NEGATIVES], (0, 1), [0, 0, 0, 0], (0, 1)),
    "smog": (smog, [*checks.draw(8, 4, 3), GROUPS], (0, 1, 2), [0, 0, 0, 0], (0, 1, 2, 3)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_finite_at_extreme_scales(name):
    loss, arrays, scaled, axes, argnums = EXAMPLES[name]
    checks.finite_everywhere(loss, *arrays, scaled=scaled, axes=axes, argnums=argnums)


def test_bfloat16_is_computed_in_float32():
    checks.computed_in_float32(*[(loss, arrays, argnums) for loss, arrays, _, _, argnums in EXAMPLES.values()])


def ones(*shape):
    return np.ones(shape)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.sinkhorn(ones(4)), "scores must be"),
        (lambda: losses.sinkhorn(ones(4, 3), iterations=0), "iterations"),
        (lambda: losses.swav(ones(4, 3)), "high and low must be"),
        (lambda: losses.swav(ones(2, 4, 3), ones(2, 5, 3)), "high and low must be"),
        (lambda: losses.swav(ones(1, 4, 3)), "at least two views"),
        (lambda: losses.swav(ones(2, 4, 3), queue_scores=ones(1, 7, 3)), "queue_scores must be"),
        (lambda: losses.swav(ones(2, 4, 3), queue_scores=ones(2, 7, 4)), "queue_scores must be"),
        (lambda: losses.pseudo_label_cross_entropy(ones(4, 3), np.zeros(4, int)), "scores must be"),
        (lambda: losses.pseudo_label_cross_entropy(ones(2, 4, 3), np.zeros(3, int)), "scores must be"),
        (lambda: losses.pseudo_label_cross_entropy(ones(2, 4, 3), np.zeros(4, int), weights=ones(4)), "weights"),
        (lambda: losses.self_classifier(ones(4, 3), ones(4, 3)), "of one shape"),
        (lambda: losses.self_classifier(ones(2, 4, 3), ones(2, 4, 2)), "of one shape"),
        (lambda: losses.pcl_prototypes(ones(4, 3), ones(5, 2), ones(5), np.zeros(4, int)), "of one dim"),
        (lambda: losses.pcl_prototypes(ones(4, 3), ones(5, 3), ones(4), np.zeros(4, int)), "concentration"),
        (lambda: losses.pcl_prototypes(ones(4, 3), ones(5, 3), ones(5), np.zeros(3, int)), "assignments"),
        (lambda: losses.smog(ones(4, 3), ones(4, 3), ones(5, 3), ones(6, 3)), "must be .batch, dim. of one shape"),
        (lambda: losses.smog(ones(4, 3), ones(4, 3), ones(4, 3), ones(6, 2)), "groups must be"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refuses_other_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
