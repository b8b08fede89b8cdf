import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from ssl_jax import losses
from ssl_jax.losses import _logsumexp
from tests.losses import checks

LIGHTLY = np.load(Path(__file__).parents[1] / "references" / "losses_contrastive.npz")
QUEUE = LIGHTLY["queue"].astype(np.float32)
# Cosines of rows with one another: -1 of 0 and 4, and of 1 and 5, otherwise 0. Four rows have an opposite, two none.
CROSS = np.concatenate([np.eye(4), -np.eye(4)[:2]]).astype(np.float32)


def info_nce_with_queue(query, key, **options):
    return losses.info_nce(query, key, queue=jnp.asarray(QUEUE), **options)


LOSSES = {
    "nt_xent": losses.nt_xent,
    "dcl": losses.dcl,
    "dclw": functools.partial(losses.dclw, sigma=0.4),
    "info_nce": losses.info_nce,
    "queue": info_nce_with_queue,
    "patch_info_nce": losses.patch_info_nce,
}


@functools.cache
def loss_of(name, chunk_size=None, temperature=0.2):
    """The same function for the same arguments, so that tests share its programs."""
    options = {} if name == "patch_info_nce" else {"temperature": temperature}
    return functools.partial(LOSSES[name], chunk_size=chunk_size, **options)


def reference_nt_xent(z1, z2, temperature):
    """Anchor by anchor, in float64, from the paper's eq. 1."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    n = len(z1)
    total = 0.0
    for i in range(2 * n):
        cosine = [z[i] @ z[k] / np.linalg.norm(z[i]) / np.linalg.norm(z[k]) for k in range(2 * n)]
        others = sum(np.exp(cosine[k] / temperature) for k in range(2 * n) if k != i)
        total -= np.log(np.exp(cosine[(i + n) % (2 * n)] / temperature) / others)
    return total / (2 * n)


def draw(n=6, dim=4, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(n, dim))
    return (scale * z1).astype(np.float32), (scale * (z1 + 0.5 * rng.normal(size=(n, dim)))).astype(np.float32)


# Keys: 12. All else of nt_xent at once is of the first of these programs.
@pytest.mark.parametrize("temperature, chunk_size", [(0.2, None), (0.1, 5), (0.1, 100)])
def test_nt_xent_value_and_gradient_equal_the_papers_formula(temperature, chunk_size):
    # The gradient's 1e-4: float32 cosines of 1 +- 6e-8, divided by the temperature and by it again in the gradient.
    loss = loss_of("nt_xent", chunk_size, temperature)
    checks.equals_reference(loss, functools.partial(reference_nt_xent, temperature=temperature), *draw())


def value_of(name, z1, z2):
    return checks.value_and_grad(loss_of(name), z1, z2, argnums=(0, 1))[0]


def test_nt_xent_of_known_embeddings():
    same = np.ones((6, 4), np.float32)
    np.testing.assert_allclose(value_of("nt_xent", same, same), np.log(11), rtol=1e-6)  # chance
    # Each anchor: its positive at cosine 1, 10 others at 0, or 8 and two at -1.
    opposite, none = np.log(np.exp(5.0) + 2 * np.exp(-5.0) + 8), np.log(np.exp(5.0) + 10)
    np.testing.assert_allclose(value_of("nt_xent", CROSS, CROSS), (4 * opposite + 2 * none) / 6 - 5.0, rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e18, 1e30])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_nt_xent_does_not_depend_on_the_scale(scale, dtype):
    z1, z2 = ((z * np.float32(scale)).astype(dtype) for z in draw(scale=1.0))
    if scale < 1e-12:
        expected, tolerance = np.log(11), 1e-3  # below the norm's eps every embedding counts as nearly zero: chance
    else:
        expected, tolerance = reference_nt_xent(z1, z2, 0.2), 1e-5
    value, gradients = checks.value_and_grad(loss_of("nt_xent"), z1, z2, argnums=(0, 1))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=tolerance)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


def test_nt_xent_of_duplicated_images_and_zero_rows_is_finite():
    z1, z2 = draw()
    z1[1], z2[1] = z1[0], z2[0]
    z1[2] = 0.0
    value, gradients = checks.value_and_grad(loss_of("nt_xent"), z1, z2, argnums=(0, 1))
    assert np.isfinite(value) and all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("name, pairs", [("nt_xent", 1024 * 1024), ("dcl", 1024 * 1024), ("queue", 512 * 2048)])
def test_streamed_holds_no_matrix_of_all_pairs(name, pairs):
    z1, z2, queue = *draw(n=512, dim=8), draw(n=2048, dim=8)[0]
    if name == "queue":
        loss, arrays = lambda q, k, queue, **kw: losses.info_nce(q, k, queue=queue, **kw), (z1, z2, queue)
    else:
        loss, arrays = LOSSES[name], (z1, z2)
    size = lambda **kw: memory_of(functools.partial(loss, **kw), *arrays)  # noqa: E731
    assert size(chunk_size=32) < 4 * pairs / 4  # a float has 4 bytes
    if name == "nt_xent":  # as of the others
        assert size() > 4 * pairs


def memory_of(loss, *arrays):
    return jax.jit(jax.grad(loss)).lower(*arrays).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("chunk_size, gathers", [(None, True), (8, False)])
def test_nt_xent_streamed_sends_keys_around_instead_of_gathering_them(chunk_size, gathers):
    def on_device(z1, z2):
        loss = functools.partial(losses.nt_xent, chunk_size=chunk_size, axis_name="i")
        return jax.grad(lambda z1: lax.pmean(loss(z1, z2), "i"))(z1)

    split = PartitionSpec("i")
    mapped = jax.shard_map(on_device, mesh=Mesh(np.array(jax.devices()), ("i",)), in_specs=split, out_specs=split)
    program = jax.jit(mapped).lower(*draw(n=64, dim=8)).as_text()
    assert ("all_gather" in program) == gathers
    assert ("collective_permute" in program) != gathers


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,)), ((4, 3), (4, 2))])
@pytest.mark.usefixtures("unchecked")
def test_nt_xent_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="of one shape"):
        losses.nt_xent(*map(np.ones, shapes))


def test_nt_xent_refuses_an_empty_chunk():
    with pytest.raises(ValueError, match="chunk_size"):
        losses.nt_xent(np.ones((2, 2)), np.ones((2, 2)), chunk_size=0)


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def log_sum_exp(scores):
    return np.log(np.sum(np.exp(scores)))


@pytest.mark.parametrize("name", ["nt_xent", "dcl", "dclw", "queue"])
def test_equals_lightly(name):
    z1, z2 = (LIGHTLY[z].astype(np.float32) for z in ("z1", "z2"))
    value, (gradient, _) = checks.value_and_grad(loss_of(name), z1, z2, argnums=(0, 1))
    name = "info_nce" if name == "queue" else name
    np.testing.assert_allclose(value, LIGHTLY[f"{name}/value"], rtol=1e-5)
    np.testing.assert_allclose(gradient, LIGHTLY[f"{name}/gradient"], rtol=1e-4, atol=1e-6)


def reference_dcl(z1, z2, temperature, weights):
    """Anchor by anchor: the positive, and the log of the sum over both views of all other images."""
    total = 0.0
    for own, other in ((z1, z2), (z2, z1)):
        for i in range(len(z1)):
            negatives = [cosine(own[i], z[k]) / temperature for z in (own, other) for k in range(len(z1)) if k != i]
            total += log_sum_exp(negatives) - weights[i] * cosine(own[i], other[i]) / temperature
    return total / (2 * len(z1))


def dclw_weights(z1, z2, sigma):
    alike = np.exp([cosine(a, b) / sigma for a, b in zip(z1, z2, strict=True)])
    return 2.0 - len(z1) * alike / np.sum(alike)


def test_dcl_equals_the_papers_formula():
    checks.equals_reference(loss_of("dcl"), lambda z1, z2: reference_dcl(z1, z2, 0.2, np.ones(6)), *draw())


def test_dclw_equals_the_papers_formula_with_weights_held():
    z1, z2 = draw()
    weights = dclw_weights(z1.astype(np.float64), z2.astype(np.float64), 0.4)
    assert np.ptp(weights) > 0.5
    checks.equals_reference(loss_of("dclw"), lambda z1, z2: reference_dcl(z1, z2, 0.2, weights), z1, z2)


def test_decoupled_losses_of_known_embeddings():
    # Positives at cosine 1, the 10 embeddings of other images at 0 or two of them at -1; equally alike, so of weight 1.
    expected = (4 * np.log(2 * np.exp(-5.0) + 8) + 2 * np.log(10)) / 6 - 5.0
    for name in ("dcl", "dclw"):
        np.testing.assert_allclose(value_of(name, CROSS, CROSS), expected, rtol=1e-6)
    # The views of image 3 are opposite: softmax([1, 1, 1, -1, 1, 1] / 0.4). No negative is at cosine 1 or -1 of it.
    z2 = CROSS * np.float32([[1], [1], [1], [-1], [1], [1]])
    share = 1.0 / (1.0 + 5 * np.exp(5.0))
    weight, others = 2 - 6 * share, 2 - 6 * (1 - share) / 5
    positives = (-weight + 5 * others) / 6 / 0.2
    np.testing.assert_allclose(value_of("dclw", CROSS, z2), expected + 5.0 - positives, rtol=1e-5)


def test_dcl_is_below_nt_xent():
    assert value_of("dcl", *draw()) < value_of("nt_xent", *draw())


LABELS = np.array([3, 0, 3, -1, 0, -1, 7, 3], np.int32)  # classes of three and two, one of one, two unlabeled


def reference_supcon(features, labels, temperature):
    """Eq. 2 of the paper, anchor by anchor; an anchor without positives counts as 0."""
    views = [(i, v) for i in range(features.shape[0]) for v in range(features.shape[1])]
    total = 0.0
    for i, v in views:
        others = [(j, w) for j, w in views if (j, w) != (i, v)]
        score = {(j, w): cosine(features[i, v], features[j, w]) / temperature for j, w in others}
        positives = [(j, w) for j, w in others if j == i or labels[i] == labels[j] >= 0]
        if positives:
            denominator = log_sum_exp(list(score.values()))
            total += np.mean([denominator - score[p] for p in positives])
    return total / len(views)


def draw_views(batch=8, views=2, dim=3):
    return np.stack(checks.draw(batch, dim, views, scale=2.0), axis=1)


@functools.cache
def supcon(chunk_size=None):
    return functools.partial(losses.supcon, temperature=0.3, chunk_size=chunk_size)


@pytest.mark.parametrize("views, chunk_size", [(2, None), (1, 5)])
def test_supcon_equals_the_papers_formula(views, chunk_size):
    reference = functools.partial(reference_supcon, temperature=0.3)
    checks.equals_reference(supcon(chunk_size), reference, draw_views(views=views), LABELS, argnums=(0,))


def test_supcon_equals_the_authors_code():
    # SupConLoss(temperature=0.1, base_temperature=...) of github.com/HobbitLong/SupContrast, losses.py at 02f458c, in
    # float64 on the normalized views.
    features = np.stack([LIGHTLY[z] for z in ("z1", "z2", "z3")], axis=1)
    labels = np.array([0, 1, 0, 2, 1, 0])
    both = jax.jit(lambda *arrays: (losses.supcon(*arrays), losses.supcon(*arrays, base_temperature=0.07)))
    np.testing.assert_allclose(both(features, labels), (5.809951323741345, 8.299930462487634), rtol=1e-5)


def test_supcon_is_stablereps_multi_positive_cross_entropy():
    # arXiv:2306.00984, eq. 1-2: the cross entropy of p, equal shares of an anchor's matches, and q, its softmax.
    z, captions = draw_views(views=1)[:, 0], np.array([0, 1, 0, 1, 2, 2, 0, 1])
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    others = ~np.eye(8, dtype=bool)
    q = np.exp(unit @ unit.T / 0.3) * others
    q /= q.sum(1, keepdims=True)
    p = (captions[:, None] == captions) & others
    p = p / p.sum(1, keepdims=True)
    expected = -np.mean(np.sum(p * np.log(np.where(others, q, 1.0)), axis=1))
    np.testing.assert_allclose(losses.supcon(z[:, None], captions, temperature=0.3), expected, rtol=1e-5)


@pytest.mark.parametrize("labels", [np.full(8, -1, np.int32), np.arange(8, dtype=np.int32)])
def test_supcon_without_common_labels_is_nt_xent(labels):
    views = draw_views()
    value, _ = checks.value_and_grad(supcon(), views, labels, argnums=(0,))
    np.testing.assert_allclose(value, reference_nt_xent(views[:, 0], views[:, 1], 0.3), rtol=1e-5)


def test_supcon_of_a_batch_without_positives_is_zero():
    labels = np.arange(8, dtype=np.int32)
    value, (gradient,) = checks.value_and_grad(supcon(5), draw_views(views=1), labels, argnums=(0,))
    assert value == 0.0 and np.all(gradient == 0.0)


def test_supcon_inside_equals_solo_learns():
    """simclr_loss_func of github.com/vturrisi/solo-learn, solo/losses/simclr.py, written anew, anchor by anchor."""

    def reference(features, labels):
        views = [(i, v) for i in range(8) for v in range(2)]
        total = 0.0
        for i, v in views:
            score = {o: cosine(features[i, v], features[o]) / 0.3 for o in views if o != (i, v)}
            positives = [s for (j, _), s in score.items() if j == i or labels[i] == labels[j] >= 0]
            total += log_sum_exp(list(score.values())) - log_sum_exp(positives)
        return total / len(views)

    loss = functools.partial(losses.supcon_inside, temperature=0.3)
    checks.equals_reference(loss, reference, draw_views(), LABELS, argnums=(0,))
    checks.same_on_devices(loss, draw_views(), LABELS, argnums=(0,), devices=(4,))
    assert losses.supcon_inside(draw_views(views=1), np.arange(8)) == 0.0


def reference_info_nce(query, key, temperature, queue=None):
    """Query by query. Without a queue all keys are candidates, with one the own key and the queue."""
    total = 0.0
    for i, q in enumerate(query):
        candidates = key if queue is None else [key[i], *queue]
        total += log_sum_exp([cosine(q, c) / temperature for c in candidates]) - cosine(q, key[i]) / temperature
    return total / len(query)


@pytest.mark.parametrize("name", ["info_nce", "queue"])
def test_info_nce_equals_the_papers_formula(name):
    queue = np.asarray(QUEUE, np.float64) if name == "queue" else None
    reference = functools.partial(reference_info_nce, temperature=0.2, queue=queue)
    checks.equals_reference(loss_of(name), reference, *draw())


def test_info_nce_of_known_embeddings():
    # The key at cosine 1, the 5 others at 0, or one of them at -1.
    opposite, none = np.log(np.exp(5.0) + np.exp(-5.0) + 4), np.log(np.exp(5.0) + 5)
    np.testing.assert_allclose(value_of("info_nce", CROSS, CROSS), (4 * opposite + 2 * none) / 6 - 5.0, rtol=1e-4)
    same = np.ones((6, 4), np.float32)
    np.testing.assert_allclose(value_of("info_nce", same, same), np.log(6), rtol=1e-6)


def test_info_nce_is_exact_where_the_key_is_found():
    # A loss of 14 exp(-100) has no digit left in a difference of logarithms near 100.
    z = np.eye(2)
    value = losses.info_nce(z[:1], z[:1], queue=np.tile(z[1:], (14, 1)), temperature=0.0125)
    np.testing.assert_allclose(value, 14 * np.exp(-80.0), rtol=1e-4)


def reference_patch_info_nce(prediction, target):
    return np.mean([log_sum_exp([p @ c for c in target]) - p @ target[i] for i, p in enumerate(prediction)])


def test_patch_info_nce_equals_the_papers_formula():
    checks.equals_reference(loss_of("patch_info_nce"), reference_patch_info_nce, *draw(scale=0.7))


def test_patch_info_nce_counts_others_as_candidates():
    prediction, target = draw(scale=0.7)

    def with_others(prediction, target):
        return losses.patch_info_nce(prediction[2:], target[2:], others=target[:2], chunk_size=4)

    def reference(prediction, target):
        terms = [log_sum_exp([p @ c for c in target]) - p @ t for p, t in zip(prediction, target, strict=True)]
        return np.mean(terms[2:])

    checks.equals_reference(with_others, reference, prediction, target)


# The others stream as these do: nt_xent with one candidate left out (above), all candidates, two left out, and those of
# a queue.
@pytest.mark.parametrize("name", ["info_nce", "dcl", "queue"])
def test_streamed_equals_at_once(name):
    z1, z2 = draw()
    value, gradients = checks.value_and_grad(loss_of(name, 4), z1, z2, argnums=(0, 1))
    expected, expected_gradients = checks.value_and_grad(loss_of(name), z1, z2, argnums=(0, 1))
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def draw_maps(batch=4, positions=5):
    rng = np.random.default_rng(1)
    maps = rng.normal(size=(2, batch, positions, 3))
    features = rng.normal(size=(2, batch, positions, 6)) * rng.uniform(0.1, 10, (2, batch, positions, 1))
    return [a.astype(np.float32) for a in (*maps, *features, rng.normal(size=(9, 3)))]


def dense_info_nce(*arrays, axis_name=None):
    return losses.dense_info_nce(*arrays, temperature=0.3, axis_name=axis_name)


def test_dense_info_nce_equals_the_papers_formula():
    _, _, query_features, key_features, _ = draw_maps()
    rows, keys = [], []
    for b, s in np.ndindex(4, 5):
        rows.append((b, s))
        keys.append((b, np.argmax([cosine(query_features[b, s], key_features[b, t]) for t in range(5)])))
    by_length = [np.argmax(key_features[b] @ query_features[b, s]) for b, s in rows]
    assert [t for _, t in keys] != by_length  # the features' lengths would decide

    def reference(query_map, key_map, query_features, key_features, queue):
        query, key = np.stack([query_map[r] for r in rows]), np.stack([key_map[k] for k in keys])
        return reference_info_nce(query, key, 0.3, queue)

    checks.equals_reference(dense_info_nce, reference, *draw_maps(), argnums=(0, 1))


def test_dense_info_nce_does_not_depend_on_the_order_of_the_keys():
    query_map, key_map, query_features, key_features, queue = draw_maps()
    order = np.array([3, 1, 4, 0, 2])
    in_order = query_map, key_map, query_features, key_features, queue
    in_another = query_map, key_map[:, order], query_features, key_features[:, order], queue
    expected, value = (checks.value_and_grad(dense_info_nce, *a, argnums=(0, 1))[0] for a in (in_order, in_another))
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def reference_ressl(query, key, queue, temperature, target_temperature):
    total = 0.0
    for q, k in zip(query, key, strict=True):
        targets = np.exp([cosine(k, c) / target_temperature for c in queue])
        scores = np.array([cosine(q, c) / temperature for c in queue])
        total += np.sum(targets / np.sum(targets) * (log_sum_exp(scores) - scores))
    return total / len(query)


RESSL = functools.partial(losses.ressl, temperature=0.3, target_temperature=0.2)


def test_ressl_equals_the_papers_formula():
    reference = functools.partial(reference_ressl, temperature=0.3, target_temperature=0.2)
    checks.equals_reference(RESSL, reference, *draw(), QUEUE)


def test_ressl_of_one_relation_is_its_entropy():
    q, queue = np.array([[1.0, 0.0]]), np.eye(2)
    p = np.exp([10.0, 0.0]) / np.sum(np.exp([10.0, 0.0]))
    np.testing.assert_allclose(losses.ressl(q, q, queue, target_temperature=0.1), -p @ np.log(p), rtol=1e-4)


def reference_nce(positive, negatives, log_z, num_images):
    """The paper's eq. 5-7."""
    noise = negatives.shape[1] / num_images
    p_data, p_noise = np.exp(positive) / np.exp(log_z), np.exp(negatives) / np.exp(log_z)
    total = np.sum(np.log(p_data / (p_data + noise))) + np.sum(np.log(noise / (p_noise + noise)))
    return -total / len(positive)


def draw_scores(batch=8):
    rng = np.random.default_rng(2)
    return rng.normal(size=batch).astype(np.float32), rng.normal(size=(batch, 5)).astype(np.float32)


NCE = functools.partial(losses.nce, log_z=2.5, num_images=40)


def test_nce_equals_the_papers_formula():
    checks.equals_reference(NCE, functools.partial(reference_nce, log_z=2.5, num_images=40), *draw_scores())


def test_nce_equals_the_authors_code():
    # NCEAverage's scores and constant, and NCECriterion, of github.com/zhirongw/lemniscate.pytorch at 06c2d49, in
    # float64, at temperature 0.07 with a bank of 100 images. Their eps of 1e-7 moves the value by 1e-5.
    z1, z2, queue = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (LIGHTLY[n] for n in ("z1", "z2", "queue")))
    positive, negatives = np.sum(z1 * z2, axis=1) / 0.07, z1 @ queue.T / 0.07

    @jax.jit
    def both(*scores):
        log_z = losses.nce_log_z(*scores, num_images=100)
        return log_z, losses.nce(*scores, log_z, num_images=100)

    log_z, value = both(positive, negatives)
    np.testing.assert_allclose(log_z, 15.570681513365697, rtol=1e-6)
    np.testing.assert_allclose(value, 1.8487675061095172, rtol=2e-5)


@pytest.mark.parametrize("name", [*(name for name in LOSSES if name != "queue"), "supcon"])  # queue: below
def test_over_devices_is_that_of_the_whole_batch(name):
    # nt_xent is the example of all that compare with every device's rows.
    devices = {"nt_xent": (1, 2, 3, 6), "supcon": (2, 8), "dcl": (6,), "dclw": (6,)}
    is_over_devices(name, None, devices.get(name, (3,)))


# As above; each device has two rows.
@pytest.mark.parametrize("name", ["nt_xent", "dcl", "info_nce", "supcon"])
def test_streamed_over_devices_is_that_of_the_whole_batch(name):
    is_over_devices(name, 5 if name in ("nt_xent", "supcon") else 4, devices=(4,) if name == "supcon" else (3,))


def is_over_devices(name, chunk_size, devices):
    if name == "supcon":
        views = draw_views(views=1 if chunk_size else 2)
        checks.same_on_devices(supcon(chunk_size), views, LABELS, argnums=(0,), devices=devices)
    else:
        loss = loss_of(name, chunk_size, 0.1 if chunk_size and name == "nt_xent" else 0.2)
        checks.same_on_devices(loss, *draw(), devices=devices)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_queue_is_the_same_on_every_device(chunk_size):
    def loss(query, key, queue, axis_name=None):
        return losses.info_nce(query, key, queue=queue, chunk_size=chunk_size, axis_name=axis_name)

    split, argnums = [True, True, False], (0, 1, 2)
    checks.same_on_devices(loss, *draw(), QUEUE, split=split, argnums=argnums, devices=(3,))


def test_relational_dense_and_nce_over_devices():
    checks.same_on_devices(RESSL, *draw(), QUEUE, split=[True, True, False], argnums=(0, 1, 2), devices=(3,))
    split = [True, True, True, True, False]
    checks.same_on_devices(dense_info_nce, *draw_maps(), split=split, argnums=(0, 1), devices=(2,))
    checks.same_on_devices(NCE, *draw_scores(), devices=(4,))


def test_nce_log_z_is_that_of_the_whole_batch_over_devices():
    positive, negatives = draw_scores()
    on_device = functools.partial(losses.nce_log_z, num_images=40, axis_name="i")
    split = PartitionSpec("i")
    # out_specs: the check of shard_map agrees that it is the same on every device.
    mapped = jax.shard_map(on_device, mesh=checks.mesh_of(4, 4), in_specs=(split, split), out_specs=PartitionSpec())
    value = jax.jit(mapped)(positive, negatives)
    scores = np.concatenate([positive[:, None], negatives], axis=1).astype(np.float64)
    np.testing.assert_allclose(value, np.log(40 * np.mean(np.exp(scores))), rtol=1e-6)


@pytest.mark.parametrize("name", list(LOSSES)[1:])
def test_finite_at_extreme_scales(name):
    checks.finite_everywhere(loss_of(name), *draw(scale=1.0))


@pytest.mark.parametrize("name", ["info_nce", "dcl", "queue"])  # the others stream as these do
def test_streamed_is_finite_at_extreme_scales(name):
    checks.finite_everywhere(loss_of(name, 4), *draw(scale=1.0))


def test_supervised_and_dense_are_finite_at_extreme_scales():
    checks.finite_everywhere(supcon(), draw_views(), LABELS, scaled=(0,))
    checks.finite_everywhere(dense_info_nce, *draw_maps(), scaled=(0, 1, 2, 3), argnums=(0, 1))


def test_relational_and_nce_are_finite_at_extreme_scales():
    checks.finite_everywhere(RESSL, *draw(scale=1.0), QUEUE, scaled=(0, 1), argnums=(0, 1, 2))
    checks.finite_everywhere(NCE, *draw_scores())


def test_bfloat16_is_computed_in_float32():
    checks.computed_in_float32(
        *[(loss_of(name), draw(), (0, 1)) for name in list(LOSSES)[1:]],
        (supcon(), (draw_views(), LABELS), (0,)),
        (dense_info_nce, draw_maps(), (0, 1)),
        (RESSL, (*draw(), QUEUE), (0, 1, 2)),
        (NCE, draw_scores(), (0, 1)),
    )


def test_streamed_is_finite_where_its_logits_are_rounded_otherwise_than_forward():
    anchors = np.float32(1e18) * QUEUE[:3]

    @jax.jit
    def gradients(anchors, rounding):
        result, residuals = _logsumexp._streamed_forward(anchors, anchors, jnp.zeros((3, 0), int), 2, None)
        return _logsumexp._streamed_backward(2, None, (*residuals[:3], result * rounding), jnp.ones(3))[:2]

    for rounding in (1 - 1e-6, 1 + 1e-6):
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients(anchors, rounding))


def ones(*shape):
    return np.ones(shape)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.dcl(ones(4, 3), ones(4, 2)), "z1 and z2 must be"),
        (lambda: losses.dcl(ones(1, 3), ones(1, 3)), "at least two"),
        (lambda: losses.dclw(ones(4), ones(4)), "z1 and z2 must be"),
        (lambda: losses.dclw(ones(1, 3), ones(1, 3)), "at least two"),
        (lambda: losses.supcon(ones(4, 3), np.zeros(4, int)), "features must be"),
        (lambda: losses.supcon(ones(4, 2, 3), np.zeros(3, int)), "features must be"),
        (lambda: losses.info_nce(ones(4, 3), ones(5, 3)), "query and key must be"),
        (lambda: losses.info_nce(ones(4, 3), ones(4, 3), queue=ones(7, 2)), "queue must be"),
        (lambda: losses.info_nce(ones(4, 3), ones(4, 3), queue=ones(3)), "queue must be"),
        (lambda: losses.patch_info_nce(ones(4, 3), ones(3, 3)), "prediction and target must be"),
        (lambda: losses.ressl(ones(4, 3), ones(4, 2), ones(7, 3)), "query and key must be"),
        (lambda: losses.ressl(ones(4, 3), ones(4, 3), ones(7, 2)), "queue must be"),
        (lambda: losses.dense_info_nce(*[ones(2, 4, 3)] * 3, ones(2, 5, 3), ones(7, 3)), "maps must be"),
        (lambda: losses.dense_info_nce(*[ones(2, 4, 3)] * 2, *[ones(2, 5, 3)] * 2, ones(7, 3)), "maps must be"),
        (lambda: losses.dense_info_nce(*[ones(2, 4, 3)] * 4, ones(7, 2)), "queue must be"),
        (lambda: losses.nce(ones(4), ones(3, 5), 0.0, num_images=9), "positive must be"),
        (lambda: losses.nce_log_z(ones(4), ones(4), num_images=9), "positive must be"),
        (lambda: losses.info_nce(ones(4, 3), ones(4, 3), chunk_size=0), "chunk_size"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_refuses_other_shapes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
