import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from ssl_jax import losses
from tests.losses import checks


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def unit(x):
    return x / np.linalg.norm(x)


def softmax(logits):
    return np.exp(logits - np.max(logits)) / np.sum(np.exp(logits - np.max(logits)))


def cross_entropy(p, logits):
    return -np.sum(p * np.log(softmax(logits)))


def entropy(p):
    return -np.sum(p * np.log(p))


# negative_cosine


def reference_negative_cosine(prediction, target):
    return -np.mean([unit(p) @ unit(t) for p, t in zip(prediction, target, strict=True)])


def test_negative_cosine_is_the_papers_formula():
    checks.equals_reference(losses.negative_cosine, reference_negative_cosine, *checks.draw(batch=5, scale=3.0))


def test_negative_cosine_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(losses.negative_cosine, *checks.draw(batch=5), devices=(1, 5))


def test_negative_cosine_is_finite():
    checks.finite_everywhere(losses.negative_cosine, *checks.draw(batch=5))


@pytest.mark.parametrize("angle", [0.0, np.pi / 3, np.pi / 2, np.pi])
def test_negative_cosine_at_known_angles(angle):
    turned = np.float32([[np.cos(angle), 0, np.sin(angle), 0]] * 5)
    value, _ = checks.value_and_grad(losses.negative_cosine, 5 * turned, np.float32([[2, 0, 0, 0]] * 5), argnums=(0, 1))
    np.testing.assert_allclose(value, -np.cos(angle), atol=1e-6)


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,)), ((4, 3), (4, 2))])
@pytest.mark.usefixtures("unchecked")
def test_negative_cosine_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match="of one shape"):
        losses.negative_cosine(*map(np.ones, shapes))


# feature_distillation


def reference_feature_distillation(prediction, target):
    d = np.abs(prediction - target)
    smooth = np.mean(np.where(d < 1, d**2 / 2, d - 0.5))
    rows = zip(prediction.reshape(-1, prediction.shape[-1]), target.reshape(-1, target.shape[-1]), strict=True)
    return 0.5 * (1 - np.mean([unit(p) @ unit(t) for p, t in rows])) + 0.5 * smooth


def test_feature_distillation_is_the_formula():
    both = checks.draw(batch=5, scale=2.0)  # differences on both sides of 1
    checks.equals_reference(losses.feature_distillation, reference_feature_distillation, *both)


def test_feature_distillation_of_places_is_that_of_as_many_rows():
    prediction, target = (draw(5, 2, 3, 4, seed=seed) for seed in (0, 1))
    value = losses.feature_distillation(prediction, target)
    rows = losses.feature_distillation(prediction.reshape(30, 4), target.reshape(30, 4))
    np.testing.assert_allclose(value, rows, rtol=1e-6)


def test_feature_distillation_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(losses.feature_distillation, *checks.draw(batch=5), devices=(1, 5))


def test_feature_distillation_is_finite():
    checks.finite_everywhere(losses.feature_distillation, *checks.draw(batch=5))


def test_feature_distillation_at_known_differences():
    # cos 0; entries differ by 2 and by 1/2, whose smooth L1 is 3/2 and 1/8, and not at all in two entries.
    prediction, target = np.float32([[2, 0, 0, 0]]), np.float32([[0, 0.5, 0, 0]])
    weights = dict(cosine=1.0, smooth_l1=4.0)
    np.testing.assert_allclose(losses.feature_distillation(prediction, target, **weights), 1 + 1.5 + 0.125, rtol=1e-6)
    assert losses.feature_distillation(target, target, **weights) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("shapes", [((4, 3), (5, 3)), ((4,), (4,)), ((4, 2, 3), (4, 3))])
@pytest.mark.usefixtures("unchecked")
def test_feature_distillation_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match=r"must be \[batch, ..., dim\] of one shape"):
        losses.feature_distillation(*map(np.ones, shapes))


# dino

TEMPERATURES = dict(student_temperature=0.2, teacher_temperature=0.05)
DINO = functools.partial(losses.dino, **TEMPERATURES)
DINO_ARRAYS = (0, 1, 2)  # for which gradients are computed


def reference_dino(student, targets, temperature):
    pairs = [(t, s) for t in range(len(targets)) for s in range(len(student)) if s != t]
    images = range(student.shape[1])
    return np.mean([cross_entropy(targets[t][i], student[s][i] / temperature) for t, s in pairs for i in images])


def dino_arrays(student_views=4, teacher_views=2, batch=3, classes=5):
    student, teacher = draw(student_views, batch, classes), draw(teacher_views, batch, classes, seed=1)
    return student, teacher, draw(classes, seed=2)


def centered_targets(teacher, center, temperature):
    return np.apply_along_axis(softmax, -1, (teacher.astype(np.float64) - center) / temperature)


@pytest.mark.parametrize("views", [(4, 2), (1, 2), (3, 1)])
def test_dino_is_the_papers_formula(views):
    arrays = dino_arrays(*views)
    targets = centered_targets(*arrays[1:], 0.05)  # constant: the gradient for the teacher and the center is 0
    reference = lambda student, teacher, center: reference_dino(student, targets, 0.2)  # noqa: E731
    checks.equals_reference(DINO, reference, *arrays, argnums=DINO_ARRAYS)


def test_dino_over_devices_is_that_of_the_whole_batch():
    split, axes = [True, True, False], [1, 1, 0]
    checks.same_on_devices(DINO, *dino_arrays(), split=split, axes=axes, argnums=DINO_ARRAYS, devices=(1, 3))


@pytest.mark.parametrize("center", [0.0, 1e17])
def test_dino_is_finite(center):
    student, teacher, _ = dino_arrays()
    arrays = student, teacher, np.float32(center) * draw(5, seed=2)
    checks.finite_everywhere(DINO, *arrays, scaled=(0, 1), axes=[1, 1, 0], argnums=DINO_ARRAYS)


def test_dino_of_a_student_that_tells_nothing_apart_is_the_chance_level():
    student = np.ones((4, 3, 5), np.float32)
    value, _ = checks.value_and_grad(DINO, student, *dino_arrays()[1:], argnums=DINO_ARRAYS)
    np.testing.assert_allclose(value, np.log(5), rtol=1e-6)


def test_dino_is_least_where_the_student_is_the_teacher():
    # The same logits in every view: then the cross entropy is the targets' entropy, and the gradient vanishes.
    teacher = np.tile(draw(1, 3, 5), (2, 1, 1))
    student = np.tile(teacher[:1] * np.float32(4.0), (4, 1, 1))  # student_temperature / teacher_temperature
    value, (gradient, *_) = checks.value_and_grad(DINO, student, teacher, np.zeros(5, np.float32), argnums=DINO_ARRAYS)
    expected = np.mean([entropy(p) for p in centered_targets(teacher, 0.0, 0.05)[0]])
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_dino_takes_a_teacher_temperature_that_is_traced():
    dino = jax.jit(lambda step, *arrays: losses.dino(*arrays, **(TEMPERATURES | dict(teacher_temperature=0.01 * step))))
    expected, _ = checks.value_and_grad(DINO, *dino_arrays(), argnums=DINO_ARRAYS)
    np.testing.assert_allclose(dino(5.0, *dino_arrays()), expected, rtol=1e-5)


def test_cross_view_takes_targets_that_are_probabilities():
    student, teacher, center = dino_arrays()
    targets = centered_targets(teacher, center, 0.05).astype(np.float32)
    expected, _ = checks.value_and_grad(DINO, student, teacher, center, argnums=DINO_ARRAYS)
    loss = functools.partial(losses.cross_view, temperature=0.2)
    value, (of_student, of_targets) = checks.value_and_grad(loss, student, targets, argnums=(0, 1))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.any(of_student) and not np.any(of_targets)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 3, 5), (2, 4, 5), (5,)), "views, batch, classes"),
        (((3, 5), (3, 5), (5,)), "views, batch, classes"),
        (((2, 3, 5), (2, 3, 5), (4,)), "center"),
        (((2, 3, 5), (2, 3, 5), (1, 5)), "center"),
        (((1, 3, 5), (1, 3, 5), (5,)), "second view"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_dino_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.dino(*map(np.ones, shapes))


# ibot

IBOT = functools.partial(losses.ibot, **TEMPERATURES)
# Unequal numbers of masked patches, so that a mean of means is not the mean.
MASK = np.array([[1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 1]], bool)


def reference_ibot(student, targets, mask, temperature):
    total = 0.0
    for i in range(len(mask)):
        patches = [cross_entropy(targets[i, j], student[i, j] / temperature) for j in np.flatnonzero(mask[i])]
        total += np.mean(patches) if patches else 0.0
    return total / len(mask)


def ibot_arrays(batch=4, classes=5):
    student, teacher, center = draw(batch, 4, classes), draw(batch, 4, classes, seed=1), draw(classes, seed=2)
    return student, teacher, center, np.tile(MASK, (batch // 4, 1))


def test_ibot_is_the_papers_formula():
    arrays = ibot_arrays()
    targets = centered_targets(*arrays[1:3], 0.05)
    reference = lambda student, teacher, center, mask: reference_ibot(student, targets, mask, 0.2)  # noqa: E731
    checks.equals_reference(IBOT, reference, *arrays, argnums=(0, 1, 2))


def test_ibot_over_devices_is_that_of_the_whole_batch():
    split = [True, True, False, True]
    checks.same_on_devices(IBOT, *ibot_arrays(), split=split, argnums=(0, 1, 2), devices=(2, 4))


def test_ibot_is_finite():
    checks.finite_everywhere(IBOT, *ibot_arrays(), scaled=(0, 1), argnums=(0, 1, 2))


def test_ibot_by_chance_counts_an_image_without_masked_patches_as_zero():
    student = np.ones((4, 4, 5), np.float32)
    value, _ = checks.value_and_grad(IBOT, student, *ibot_arrays()[1:], argnums=(0, 1, 2))
    np.testing.assert_allclose(value, 3 / 4 * np.log(5), rtol=1e-6)


def test_ibot_of_nothing_masked_is_zero():
    *arrays, mask = ibot_arrays()
    value, (gradient, *_) = checks.value_and_grad(IBOT, *arrays, np.zeros_like(mask), argnums=(0, 1, 2))
    assert value == 0 and not np.any(gradient)


def test_masked_patches_takes_targets_that_are_probabilities():
    student, teacher, center, mask = ibot_arrays()
    targets = centered_targets(teacher, center, 0.05).astype(np.float32)
    expected, _ = checks.value_and_grad(IBOT, student, teacher, center, mask, argnums=(0, 1, 2))
    loss = functools.partial(losses.masked_patches, temperature=0.2)
    value, (of_student, of_targets) = checks.value_and_grad(loss, student, targets, mask, argnums=(0, 1))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert np.any(of_student) and not np.any(of_targets)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((2, 3, 5), (2, 4, 5), (5,), (2, 3)), "of one shape, mask"),
        (((2, 5), (2, 5), (5,), (2,)), "of one shape, mask"),
        (((2, 3, 5), (2, 3, 5), (5,), (3, 2)), "of one shape, mask"),
        (((2, 3, 5), (2, 3, 5), (3,), (2, 3)), "center"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_ibot_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.ibot(*map(np.ones, shapes))


# koleo


def reference_koleo(z):
    x = [unit(row) for row in z]
    n = len(x)
    distances = [min(np.linalg.norm(x[i] - x[j] + 1e-8) for j in range(n) if j != i) for i in range(n)]
    return -np.mean([np.log(d + 1e-8) for d in distances])


@pytest.mark.parametrize("shape", [(8, 4), (2, 3)])
def test_koleo_is_the_codes_formula(shape):
    checks.equals_reference(losses.koleo, reference_koleo, draw(*shape, scale=3.0))


def test_koleo_over_devices_has_the_neighbors_of_the_whole_batch():
    # Neighbors lie 4 rows apart, on other devices from 4 devices on; 8 devices have a single row each.
    z = np.concatenate([draw(4, 4), draw(4, 4) + 0.3 * draw(4, 4, seed=1)])
    checks.same_on_devices(losses.koleo, z)


@pytest.mark.parametrize("group", [2, 4])
def test_koleo_in_groups_is_that_of_each_on_any_devices(group):
    # On 2 devices each has whole groups; on 8 none has.
    z = draw(8, 5)
    expected = np.mean([reference_koleo(part) for part in z.reshape(-1, group, 5)])
    loss = functools.partial(losses.koleo, group=group)
    np.testing.assert_allclose(checks.value_and_grad(loss, z, argnums=(0,))[0], expected, rtol=1e-5)
    checks.same_on_devices(loss, z, devices=(2, 8))


@pytest.mark.parametrize("group", [1, 3])
def test_koleo_in_groups_that_do_not_fill_the_batch_is_refused(group):
    with pytest.raises(ValueError, match="a divisor of the global batch's 8 rows, got"):
        losses.koleo(np.ones((8, 4), np.float32), group=group)


def test_koleo_is_finite():
    checks.finite_everywhere(losses.koleo, draw(8, 4))


def test_koleo_of_a_regular_polygon():
    angles = np.pi * np.arange(8) / 4
    z = np.float32([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles]).T
    value, _ = checks.value_and_grad(losses.koleo, z, argnums=(0,))
    np.testing.assert_allclose(value, -np.log(2 * np.sin(np.pi / 8)), atol=1e-6)


def test_koleo_of_duplicates():
    # All distances are |eps, ..., eps| + eps.
    value, _ = checks.value_and_grad(losses.koleo, np.ones((8, 4), np.float32), argnums=(0,))
    np.testing.assert_allclose(value, -np.log(1e-8 * np.sqrt(4) + 1e-8), rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (1, 4)])
@pytest.mark.usefixtures("unchecked")
def test_koleo_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="at least two rows"):
        losses.koleo(np.ones(shape))


# gram


def reference_gram(student, teacher):
    errors = []
    for s, t in zip(student, teacher, strict=True):
        for p in range(len(s)):
            for q in range(len(s)):
                errors.append((unit(s[p]) @ unit(s[q]) - unit(t[p]) @ unit(t[q])) ** 2)
    return np.mean(errors)


def test_gram_is_the_papers_formula_whatever_the_dims():
    patches = draw(3, 5, 4, scale=3.0), draw(3, 5, 2, seed=1)
    checks.equals_reference(losses.gram, reference_gram, *patches, argnums=(0,))
    assert not np.any(checks.value_and_grad(losses.gram, *patches, argnums=(1,))[1][0])


def test_gram_over_devices_is_that_of_the_whole_batch():
    checks.same_on_devices(losses.gram, draw(8, 5, 4), draw(8, 5, 4, seed=1), argnums=(0,))


def test_gram_is_finite():
    checks.finite_everywhere(losses.gram, draw(4, 5, 4), draw(4, 5, 4, seed=1), argnums=(0,))


def test_gram_of_turned_features_is_zero_and_of_features_that_became_alike_is_not():
    turn, _ = np.linalg.qr(draw(4, 4, seed=2))
    patches = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))  # all at right angles
    turned, alike = 7.0 * patches @ turn, np.ones_like(patches)
    np.testing.assert_allclose(losses.gram(turned, patches), 0.0, atol=1e-6)
    np.testing.assert_allclose(losses.gram(alike, patches), 12 / 16, rtol=1e-6)  # all pairs but the 4 equal ones


@pytest.mark.parametrize("shapes", [((2, 3, 4), (2, 5, 4)), ((2, 4), (2, 4)), ((2, 3, 4), (1, 3, 4))])
@pytest.mark.usefixtures("unchecked")
def test_gram_refuses_other_shapes(shapes):
    with pytest.raises(ValueError, match=r"must be \[batch, patches, dim\] of the same images and patches, got"):
        losses.gram(*map(np.ones, shapes))


# msn and pmsn


def assignment(x, prototypes, temperature):
    return softmax(np.array([unit(x) @ unit(c) for c in prototypes]) / temperature)


def msn_codes(targets, prototypes, temperature, sharpen, iterations):
    """The authors' code: sharpened, then rows and columns divided by their sums in turn."""
    q = np.array([assignment(x, prototypes, temperature) ** (1 / sharpen) for x in targets])
    q = q / np.sum(q, axis=1, keepdims=True)
    q = q.T / np.sum(q)
    for _ in range(iterations):
        q = q / np.sum(q, axis=1, keepdims=True) / len(q)
        q = q / np.sum(q, axis=0, keepdims=True) / q.shape[1]
    return (q * q.shape[1]).T


def reference_pmsn(anchors, prototypes, codes, temperature, me_max, power=0.25):
    assignments = [assignment(x, prototypes, temperature) for x in anchors]
    ce = np.mean([-np.sum(codes[i % len(codes)] * np.log(p)) for i, p in enumerate(assignments)])
    m = np.mean(assignments, axis=0)
    prior = np.array([k**-power for k in range(1, len(m) + 1)])
    prior = prior / np.sum(prior)
    return ce + me_max * np.sum(m * np.log(m / prior))


def reference_msn(anchors, prototypes, codes, temperature, me_max):
    assignments = [assignment(x, prototypes, temperature) for x in anchors]
    ce = np.mean([-np.sum(codes[i % len(codes)] * np.log(p)) for i, p in enumerate(assignments)])
    return ce + me_max * (np.log(len(prototypes)) - entropy(np.mean(assignments, axis=0)))


def msn_arrays(views=3, batch=4, dim=6, prototypes=7):
    return draw(views, batch, dim, scale=2.0), draw(batch, dim, seed=1), draw(prototypes, dim, seed=2)


@functools.cache
def of_views(name, **options):
    """The loss of anchors [views, batch, dim], whose batch can be split."""

    def loss(anchors, *arrays, axis_name=None):
        anchors = anchors.reshape(-1, anchors.shape[-1])
        return getattr(losses, name)(anchors, *arrays, axis_name=axis_name, **options)

    return loss


OPTIONS = dict(temperature=0.2, sharpen=0.5, iterations=2, me_max=0.7)
MSN_ARRAYS = (0, 1, 2)  # for which gradients are computed


@pytest.mark.parametrize("name", ["msn", "pmsn"])
@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_msn_is_the_papers_formula(name, options):
    anchors, targets, prototypes = msn_arrays()
    used = dict(temperature=0.1, sharpen=0.25, iterations=3, me_max=1.0) | options
    me_max, temperature = used.pop("me_max"), used["temperature"]
    # Codes carry no gradient, so that for the targets it is 0.
    codes = msn_codes(*(a.astype(np.float64) for a in (targets, prototypes)), **used)
    if name == "msn":
        reference = lambda a, t, p: reference_msn(a.reshape(-1, 6), p, codes, temperature, me_max)  # noqa: E731
    else:
        power = {"power": 1.0} if options else {}
        options = options | power
        reference = lambda a, t, p: reference_pmsn(a.reshape(-1, 6), p, codes, temperature, me_max, **power)  # noqa: E731
    checks.equals_reference(of_views(name, **options), reference, anchors, targets, prototypes, argnums=MSN_ARRAYS)


@pytest.mark.parametrize("name", ["msn", "pmsn"])
def test_msn_over_devices_is_that_of_the_whole_batch(name):
    split, axes = [True, True, False], [1, 0, 0]
    devices = (2, 4) if name == "msn" else (2,)
    checks.same_on_devices(of_views(name), *msn_arrays(), split=split, axes=axes, argnums=MSN_ARRAYS, devices=devices)


@pytest.mark.parametrize("name", ["msn", "pmsn"])
def test_msn_is_finite(name):
    checks.finite_everywhere(of_views(name), *msn_arrays(), axes=[1, 0, 0])


def test_bfloat16_is_computed_in_float32():
    checks.computed_in_float32(
        (losses.negative_cosine, checks.draw(batch=5), (0, 1)),
        (losses.gram, (draw(8, 5, 4), draw(8, 5, 4, seed=1)), (0,)),
        (DINO, dino_arrays(), DINO_ARRAYS),
        (IBOT, ibot_arrays(), (0, 1, 2)),
        (losses.koleo, [draw(8, 4)], (0,)),
        (of_views("msn"), msn_arrays(), MSN_ARRAYS),
        (of_views("pmsn"), msn_arrays(), MSN_ARRAYS),
    )


def test_msn_of_prototypes_never_used_is_finite():
    # cos / 1e-3: the unused prototypes' probability, exp(-1000), is 0 in float32.
    x = np.eye(8)[:4]
    value, gradient = checks.value_and_grad(functools.partial(losses.msn, temperature=1e-3), x, x, np.eye(8))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert value > np.log(8 / 4) - 1e-6  # half of the prototypes take all


def test_msn_of_known_embeddings():
    # Every image at its own prototype, each as often as any other: both terms vanish as exp(-1 / temperature) does.
    x = np.eye(4)
    loss = functools.partial(losses.msn, temperature=0.02)
    np.testing.assert_allclose(loss(np.tile(x, (3, 1)), x, x), 0.0, atol=1e-6)
    # All to prototype 0: log K - H = log 4; the targets are spread over all 4, three of which are 1 / 0.02 = 50 away.
    np.testing.assert_allclose(loss(np.tile(x[:1], (12, 1)), x, x), 3 / 4 * 50 + np.log(4), rtol=1e-5)


@pytest.mark.parametrize(
    "shapes, message",
    [
        (((7, 3), (4, 3), (5, 3)), r"views \* batch"),
        (((2, 3), (4, 3), (5, 3)), r"views \* batch"),
        (((8,), (4,), (5,)), r"views \* batch"),
        (((8, 3), (4, 3), (5, 2)), "one dim"),
        (((8, 3), (4, 2), (5, 3)), "one dim"),
        (((8, 3), (4, 3), (3,)), "one dim"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_msn_refuses_other_shapes(shapes, message):
    with pytest.raises(ValueError, match=message):
        losses.msn(*map(np.ones, shapes))


# Numbers of another library, in float64: see references/make_losses_distillation.py.

REFERENCES = Path(__file__).parents[1] / "references" / "losses_distillation.npz"
CASES = {  # loss, arrays, and for which of them gradients are computed
    "negative_cosine": (losses.negative_cosine, ("prediction", "target"), (0, 1)),
    "koleo": (losses.koleo, ("prediction",), (0,)),
    "dino": (DINO, ("student", "teacher", "center"), DINO_ARRAYS),
    "ibot": (IBOT, ("patches", "teacher_patches", "center", "mask"), (0, 1, 2)),
    "msn": (of_views("msn"), ("anchors", "targets", "prototypes"), MSN_ARRAYS),
}


def reference(name):
    with np.load(REFERENCES) as stored:
        array = stored[name].astype(bool if name == "mask" else np.float32)
    return array.reshape(3, 4, 6) if name in ("anchors", "msn/gradient") else array


@pytest.mark.parametrize("name", CASES)
def test_loss_is_lightlys(name):
    loss, arrays, argnums = CASES[name]
    value, gradients = checks.value_and_grad(loss, *map(reference, arrays), argnums=argnums)
    np.testing.assert_allclose(value, reference(f"{name}/value"), rtol=1e-5)
    np.testing.assert_allclose(gradients[0], reference(f"{name}/gradient"), rtol=1e-4, atol=1e-6)


def test_pmsn_is_lightlys_but_for_the_direction_of_kl():
    anchors, targets, prototypes = map(reference, CASES["msn"][1])
    m = np.mean([assignment(x, prototypes, 0.1) for x in anchors.reshape(-1, 6)], axis=0)
    prior = np.arange(1, 8) ** -0.25 / np.sum(np.arange(1, 8) ** -0.25)
    value, _ = checks.value_and_grad(of_views("pmsn"), anchors, targets, prototypes, argnums=MSN_ARRAYS)
    expected = reference("pmsn/value") + np.sum(m * np.log(m / prior)) - np.sum(prior * np.log(prior / m))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
