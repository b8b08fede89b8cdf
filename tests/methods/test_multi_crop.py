"""Small crops of methods whose tests have large ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Schedule
from tests.methods import drawn

SCHEDULE = Schedule(batch_size=6, steps=100, steps_per_epoch=10, num_images=60, num_classes=3)
RNG = np.random.default_rng(0)
LARGE = tuple(RNG.normal(size=(2, 6, 12, 12, 1)).astype(np.float32))
SMALL = tuple(RNG.normal(size=(2, 6, 8, 8, 1)).astype(np.float32))
LABELS = np.array([0, 1, 0, 2, 2, 1])
OPTIONS = {
    "dcl": dict(projector=(8, 4)),
    "supcon": dict(projector=(8, 4)),
    "nnclr": dict(projector=(8, 4), predictor=(8, 4), queue_size=12),
    "smog": dict(projector=(8, 4), predictor=(8, 4), groups=3, queue_size=12),
    "ressl": dict(projector=(8, 4), queue_size=12),
}


def make(name, **options):
    return METHODS[name](models.create("resnet8", stages=(1,)), SCHEDULE, **OPTIONS[name], **options)


def run(step, method, *views):
    """step(params, state, batch) as one program, in numpy."""
    assert len(method.views) == len(views)
    batch = {"views": views, "label": LABELS, "index": np.arange(6)}
    return jax.device_get(jax.jit(step)(*drawn.draw(method, views[0][:1]), batch))


def loss_of(method, params, state, batch):
    """(loss, new state)"""
    output = method.loss(params, state, batch, jax.random.key(3))
    return output.loss, output.state


def by_hand(networks, variables, x):
    """Views that pass as one batch -> {network: its output}"""
    outputs = {}
    for name, module in networks.items():
        of_module = {"params": variables["params"][name], "batch_stats": variables["batch_stats"][name]}
        x, _ = module.apply(of_module, x, train=True, mutable=["batch_stats"])
        outputs[name] = x
    return outputs


def by_size(networks, variables, *groups, together):
    """{network: [views, batch, dim]} of groups of views of one size, which pass as one batch, or each by itself."""

    def of_group(views):
        if not together:
            return jax.vmap(lambda x: by_hand(networks, variables, x))(jnp.stack(views))
        outputs = by_hand(networks, variables, jnp.concatenate(views))
        return jax.tree.map(lambda z: z.reshape(len(views), -1, z.shape[-1]), outputs)

    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *map(of_group, groups))


def test_supcon_has_small_crops_as_anchors_and_positives():
    options = dict(local_views=2, temperature=0.2, base_temperature=0.2)
    method, inside = make("supcon", **options), make("supcon", positives="inside", **options)

    def step(params, state, batch):
        variables, (x1, x2, *small) = {"params": params, **state}, batch["views"]
        z = by_size(method.networks, variables, (x1, x2), small, together=True)["projector"].swapaxes(0, 1)
        return (
            (loss_of(method, params, state, batch)[0], losses.supcon(z, batch["label"], temperature=0.2)),
            (loss_of(inside, params, state, batch)[0], losses.supcon_inside(z, batch["label"], temperature=0.2)),
            (method.chance_level, losses.supcon(jnp.ones_like(z), batch["label"], temperature=0.2)),
        )

    both, of_inside, of_chance = run(step, method, *LARGE, *SMALL)
    np.testing.assert_allclose(*both, rtol=1e-4)
    np.testing.assert_allclose(*of_inside, rtol=1e-4)
    np.testing.assert_allclose(*of_chance, rtol=1e-6)
    assert inside.chance_level is None
    with pytest.raises(ValueError, match="positives must be one of outside, inside, got 'between'"):
        make("supcon", positives="between")


def test_dcl_pairs_each_small_crop_with_both_large_ones():
    method, weighted = make("dcl", local_views=2), make("dcl", local_views=2, weighted=True)

    def step(params, state, batch):
        variables, (x1, x2, *small) = {"params": params, **state}, batch["views"]
        z = by_size(method.networks, variables, (x1, x2), small, together=True)["projector"]
        pairs = z[jnp.array([0, 0, 0, 1, 1])], z[jnp.array([1, 2, 3, 2, 3])]
        return (
            (loss_of(method, params, state, batch)[0], jax.vmap(losses.dcl)(*pairs)),
            (loss_of(weighted, params, state, batch)[0], jax.vmap(losses.dclw)(*pairs)),
        )

    for loss, of_pairs in run(step, method, *LARGE, *SMALL):
        np.testing.assert_allclose(loss, np.mean(of_pairs), rtol=1e-4)


def test_nnclr_contrasts_small_crops_with_the_neighbors_of_both_large_ones():
    method = make("nnclr", local_views=2)

    def step(params, state, batch):
        variables, (x1, x2, *small) = {"params": params, **state}, batch["views"]
        outputs, rows = by_size(method.networks, variables, (x1, x2), small, together=False), state["queue"]["rows"]
        z, p = outputs["projector"][:2], outputs["predictor"]
        neighbors = rows[jnp.argmax(z @ rows.T, axis=-1)]
        pairs = neighbors[jnp.array([0, 0, 0, 1, 1, 1])], p[jnp.array([1, 2, 3, 0, 2, 3])]
        expected = jax.vmap(lambda *pair: losses.info_nce(*pair, temperature=0.1))(*pairs)
        return *loss_of(method, params, state, batch), expected, z[0]

    loss, new, expected, z = run(step, method, *LARGE, *SMALL)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-4)
    np.testing.assert_allclose(new["queue"]["rows"][:6], z / np.linalg.norm(z, axis=1, keepdims=True), atol=1e-4)


def test_smogs_small_crops_predict_the_same_group_and_move_none():
    method, alone = make("smog", local_views=2), make("smog")

    def step(params, state, batch):
        large, teachers, *small = batch["views"]
        outputs = by_size(method.networks, {"params": params, **state}, [large], small, together=True)
        t = by_hand(method.encoder, state["teacher"], teachers)["projector"]
        z = outputs["projector"][0]
        z /= jnp.linalg.norm(z, axis=1, keepdims=True)
        loss, new = loss_of(method, params, state, batch)
        _, without = loss_of(alone, params, state, {**batch, "views": batch["views"][:2]})
        expected = jax.vmap(lambda p: losses.smog(p, z, t, state["groups"])[0])(outputs["predictor"])
        return loss, expected, new["groups"], without["groups"], state["groups"]

    loss, expected, groups, without, before = run(step, method, *LARGE, *SMALL)
    assert len(expected) == 3
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-3)
    np.testing.assert_allclose(groups, without, atol=1e-5)
    assert np.abs(groups - before).max() > 1e-3


def test_ressls_students_pass_by_themselves_and_match_one_teacher():
    method = make("ressl", students=3)
    assert method.views == ("student", "teacher", "student_2", "student_3")

    def step(params, state, batch):
        student, _, *others = batch["views"]
        outputs = by_size(method.networks, {"params": params, **state}, [student], others, together=False)
        loss, new = loss_of(method, params, state, batch)
        keys, queue = new["queue"]["rows"][:6], state["queue"]["rows"]
        return loss, jax.vmap(lambda z: losses.ressl(z, keys, queue))(outputs["projector"])

    loss, expected = run(step, method, *LARGE, *SMALL)
    np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-3)


@pytest.mark.parametrize("name", ["dcl", "supcon", "nnclr", "smog"])
def test_fewer_than_no_small_crops_are_refused(name):
    with pytest.raises(ValueError, match="local_views must be at least 0, got -1"):
        make(name, local_views=-1)


def test_no_student_is_refused():
    with pytest.raises(ValueError, match="students must be at least 1, got 0"):
        make("ressl", students=0)
