"""Small crops of methods whose tests have large ones."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Run

RUN = Run(batch_size=6, steps=100, steps_per_epoch=10, num_images=60, num_classes=3)
LARGE = tuple(jax.random.normal(jax.random.key(0), (2, 6, 12, 12, 1)))
SMALL = tuple(jax.random.normal(jax.random.key(1), (2, 6, 8, 8, 1)))
LABELS = jnp.array([0, 1, 0, 2, 2, 1])
OPTIONS = {
    "dcl": dict(projector=(8, 4)),
    "supcon": dict(projector=(8, 4)),
    "nnclr": dict(projector=(8, 4), predictor=(8, 4), queue_size=12),
    "smog": dict(projector=(8, 4), predictor=(8, 4), groups=3, queue_size=12),
    "ressl": dict(projector=(8, 4), queue_size=12),
}


def make(name, **options):
    return METHODS[name](models.create("resnet8", stages=(1,)), RUN, **OPTIONS[name], **options)


def run(name, views, **options):
    """(method, loss, new state, {network: [views, batch, dim]}, state); the outputs as a step by hand has them."""
    method = make(name, **options)
    assert len(method.views) == len(views)

    @jax.jit
    def step(rng):
        params, state = method.init(rng, LARGE[0])
        batch = {"views": views, "label": LABELS, "index": jnp.arange(6)}
        loss, (new_state, _) = method.loss(params, state, batch, jax.random.key(3))
        return loss, new_state, by_hand(method, params, state, views), state

    return method, *step(jax.random.key(2))


def by_hand(method, params, state, views):
    """Views of one size as one batch where BatchNorm spans them; each by itself elsewhere."""
    name, outputs = type(method).__name__, {name: [] for name in method.networks}
    groups = [[view] for view in views]
    if name in ("DCL", "SupCon"):
        groups = [list(group) for _, group in itertools.groupby(views, jnp.shape)]
    elif name == "SMoG":  # whose second large view is the teacher's
        groups = [views[:1], views[1:2], views[2:]]
    for group in filter(len, groups):
        x = jnp.concatenate(group)
        for name, module in method.networks.items():
            variables = {"params": params[name], "batch_stats": state["batch_stats"][name]}
            x, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
            outputs[name] += jnp.split(x, len(group))
    return outputs


def test_supcon_has_small_crops_as_anchors_and_positives():
    _, loss, _, outputs, _ = run("supcon", LARGE + SMALL, local_views=2, temperature=0.2, base_temperature=0.2)
    z = jnp.stack(outputs["projector"], axis=1)
    np.testing.assert_allclose(loss, losses.supcon(z, LABELS, temperature=0.2), rtol=1e-4)
    equal = losses.supcon(jnp.ones((6, 4, 4)), LABELS, temperature=0.2)
    chance = make("supcon", local_views=2, temperature=0.2, base_temperature=0.2).chance_level
    np.testing.assert_allclose(chance, equal, rtol=1e-6)


def test_supcon_inside_has_no_chance_level_and_solo_learns_loss():
    options = dict(positives="inside", temperature=0.2, base_temperature=0.2)
    method, loss, _, outputs, _ = run("supcon", LARGE, **options)
    z = jnp.stack(outputs["projector"], axis=1)
    np.testing.assert_allclose(loss, losses.supcon_inside(z, LABELS, temperature=0.2), rtol=1e-4)
    assert method.chance_level is None
    with pytest.raises(ValueError, match="positives='between' is unknown; it is one of outside, inside"):
        make("supcon", positives="between")


@pytest.mark.parametrize("weighted", [False, True])
def test_dcl_pairs_each_small_crop_with_both_large_ones(weighted):
    _, loss, _, outputs, _ = run("dcl", LARGE + SMALL, local_views=2, weighted=weighted)
    z, pair = outputs["projector"], losses.dclw if weighted else losses.dcl
    expected = [pair(z[i], z[j]) for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)


def test_nnclr_contrasts_small_crops_with_the_neighbors_of_both_large_ones():
    _, loss, new, outputs, state = run("nnclr", LARGE + SMALL, local_views=2)
    rows = np.asarray(state["queue"]["rows"])
    neighbors = [rows[np.argmax(np.asarray(z) @ rows.T, axis=1)] for z in outputs["projector"][:2]]
    expected = [
        losses.info_nce(jnp.asarray(neighbors[i]), p, temperature=0.1)
        for i in range(2)
        for j, p in enumerate(outputs["predictor"])
        if i != j
    ]
    assert len(expected) == 6
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)
    z = np.asarray(outputs["projector"][0])
    np.testing.assert_allclose(new["queue"]["rows"][:6], z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-4)


def test_smogs_small_crops_predict_the_same_group_and_move_none():
    _, loss, new, outputs, _ = run("smog", LARGE + SMALL, local_views=2)
    _, _, without, _, state = run("smog", LARGE)
    np.testing.assert_allclose(new["groups"], without["groups"], atol=1e-5)
    z = outputs["projector"][0] / jnp.linalg.norm(outputs["projector"][0], axis=1, keepdims=True)
    t = LARGE[1]
    for name, module in make("smog").encoder.items():
        variables = {key: state["teacher"][key][name] for key in ("params", "batch_stats")}
        t, _ = module.apply(variables, t, train=True, mutable=["batch_stats"])
    predictions = [outputs["predictor"][i] for i in (0, 2, 3)]  # by hand, the second large view is there, too
    expected = [losses.smog(p, z, t, state["groups"])[0] for p in predictions]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-3)


def test_ressls_students_pass_by_themselves_and_match_one_teacher():
    views = (LARGE[0], LARGE[1], *SMALL)
    method, loss, new, outputs, state = run("ressl", views, students=3)
    assert method.views == ("student", "teacher", "student_2", "student_3")
    queue, k = state["queue"]["rows"], new["queue"]["rows"][:6]
    expected = [losses.ressl(outputs["projector"][i], k, queue) for i in (0, 2, 3)]
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-3)


@pytest.mark.parametrize("name", ["dcl", "supcon", "nnclr", "smog"])
def test_fewer_than_no_small_crops_are_refused(name):
    with pytest.raises(ValueError, match="local_views must be at least 0, got -1"):
        make(name, local_views=-1)


def test_no_student_is_refused():
    with pytest.raises(ValueError, match="students must be above 0, got 0"):
        make("ressl", students=0)
