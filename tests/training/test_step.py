import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import Mesh

from ssl_jax import dist, losses, models, optim
from ssl_jax.data.augment import Augmentation, make_augment
from ssl_jax.data.normalization import Normalization
from ssl_jax.health import panel, spectrum
from ssl_jax.methods import Base, Output, Schedule
from ssl_jax.methods.byol import BYOL
from ssl_jax.methods.simclr import SimCLR
from ssl_jax.training import step
from ssl_jax.training.state import create_state, with_backbone

STEPS, BATCH = 20, 16


def local_mean(z1, z2, axis_name):
    """Of the kind of BYOL's: a mean over the device's own rows."""
    return jnp.mean((z1 - z2) ** 2) + jnp.mean((z1 - 1.0) ** 2)


def gathered(z1, z2, axis_name):
    """Of the kind of SimCLR's: the device's rows against those of all devices."""
    return losses.nt_xent(z1, z2, temperature=0.5, axis_name=axis_name)


def reduced_inside(z1, z2, axis_name):
    """Of the kind of Barlow Twins': a nonlinear function of a mean over all devices."""
    c = z1.T @ z2 / len(z1)
    c = c if axis_name is None else lax.pmean(c, axis_name)
    return jnp.sum((c / 4 - jnp.eye(len(c))) ** 2)


@dataclasses.dataclass(frozen=True)
class Toy(Base):
    """A linear map under one of the three kinds of loss; `poison`: the example index whose row is made infinite."""

    kind: callable
    poison: int = -1

    def init(self, rng, images):
        state = {"steps": jnp.zeros((), jnp.int32), "number": jnp.zeros((), jnp.int32)}
        return {"w": jax.random.normal(rng, (images.shape[-1], 3))}, state

    def loss(self, params, state, batch, rng, *, axis_name=None):
        z1, z2 = (x[:, 0, 0] @ params["w"] for x in batch["views"])
        z1 *= jnp.where(batch["index"][:, None] == self.poison, jnp.inf, 1.0)
        loss = self.kind(z1, z2, axis_name)
        return Output(loss, state, {}, jnp.stack([z1, z2]))

    def update(self, params, state, step):
        return {"steps": state["steps"] + 1, "number": step}


def toy_views(rng, batch):
    x = batch["image"].astype(jnp.float32) / 64 - 2
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(rng, i), x.shape[1:]))(batch["index"])
    return {**batch, "views": (x, x + 0.3 * noise)}


def toy_batch(number):
    rng = np.random.default_rng(number)
    image = rng.integers(0, 256, (BATCH, 1, 1, 5), np.uint8)
    return {"image": image, "index": np.arange(BATCH, dtype=np.int32) + BATCH * number}


def run_toy(kind, mapping, devices, tx, steps=STEPS, poison=-1, log_every=5):
    method = Toy(kind, poison)
    one_step = step.TrainStep(method=method, tx=tx, augment=toy_views, axis_name=dist.AXIS, log_every=log_every)
    state = create_state(method, tx, jnp.zeros((1, 1, 1, 5)), seed=0)
    history = []
    if mapping == "shard_map":
        mesh = Mesh(np.asarray(jax.devices()[:devices]), (dist.AXIS,))
        mapped, place = dist.map_step(one_step, mesh), lambda batch: dist.shard_batch(batch, mesh)
        state = dist.replicate(state, mesh)
    else:
        mapped = jax.pmap(one_step, axis_name=dist.AXIS, devices=jax.devices()[:devices])
        place = functools.partial(jax.tree.map, lambda x: x.reshape(devices, -1, *x.shape[1:]))
        state = jax.tree.map(lambda x: jnp.stack([x] * devices), state)
    for number in range(steps):
        state, metrics = mapped(state, place(toy_batch(number)))
        history.append({name: float(np.ravel(value)[0]) for name, value in metrics.items()})
    if mapping == "pmap":
        state = jax.tree.map(lambda x: x[0], state)
    return state, history


@pytest.mark.parametrize("kind", [local_mean, gathered, reduced_inside])
def test_sgd_steps_are_the_same_under_every_mapping(kind):
    # SGD, because Adam's and LARS's updates hardly show a gradient that is N times too large.
    tx = optax.sgd(0.05)
    expected, losses_expected = run_toy(kind, "shard_map", 1, tx)
    initial, _ = run_toy(kind, "shard_map", 1, tx, steps=0)
    assert np.abs(expected.params["w"] - initial.params["w"]).max() > 0.01
    # After the first step a method is told 1.
    assert (int(expected.model_state["steps"]), int(expected.model_state["number"])) == (STEPS, STEPS)
    for mapping, devices in [("shard_map", 8), ("pmap", 4)]:
        state, history = run_toy(kind, mapping, devices, tx)
        np.testing.assert_allclose(state.params["w"], expected.params["w"], rtol=1e-5, atol=1e-6)
        for name in ("loss", "grad_norm"):
            np.testing.assert_allclose(
                [h[name] for h in history], [h[name] for h in losses_expected], rtol=1e-5, err_msg=f"{mapping}{devices}"
            )


def test_first_gradient_is_that_of_the_whole_batch():
    batch = toy_views(*_first_rng_and_batch())
    method = Toy(gathered)
    state = create_state(method, optax.sgd(1.0), jnp.zeros((1, 1, 1, 5)), seed=0)
    gradient = jax.grad(lambda params: method.loss(params, state.model_state, batch, None).loss)(state.params)
    stepped, history = run_toy(gathered, "shard_map", 8, optax.sgd(1.0), steps=1)
    np.testing.assert_allclose(state.params["w"] - stepped.params["w"], gradient["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(history[0]["grad_norm"], optax.tree.norm(gradient), rtol=1e-5)


def _first_rng_and_batch():
    state = create_state(Toy(gathered), optax.sgd(1.0), jnp.zeros((1, 1, 1, 5)), seed=0)
    return jax.random.split(jax.random.fold_in(state.rng, 0))[0], toy_batch(0)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
    tx = optax.sgd(0.05, momentum=0.9)
    before, _ = run_toy(gathered, "shard_map", 4, tx, steps=2)
    # An example of the third batch: only one device's rows are infinite.
    after, history = run_toy(gathered, "shard_map", 4, tx, steps=3, poison=2 * BATCH + 3)
    for old, new in zip(
        jax.tree.leaves((before.params, before.model_state, before.opt_state)),
        jax.tree.leaves((after.params, after.model_state, after.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    assert (int(after.step), int(after.skipped), int(after.skipped_in_a_row)) == (3, 1, 1)
    assert not np.isfinite(history[-1]["loss"])
    later, _ = run_toy(gathered, "shard_map", 4, tx, steps=4, poison=2 * BATCH + 3)
    assert (int(later.skipped), int(later.skipped_in_a_row)) == (1, 0)
    assert not np.array_equal(later.params["w"], after.params["w"])


def test_a_state_that_differs_between_devices_is_refused_when_traced():
    @dataclasses.dataclass(frozen=True)
    class Forgetful(Toy):
        def loss(self, params, state, batch, rng, *, axis_name=None):
            output = super().loss(params, state, batch, rng, axis_name=axis_name)
            return output._replace(state={**state, "steps": state["steps"] + batch["index"][0]})

    method, tx = Forgetful(local_mean), optax.sgd(0.1)
    mesh = dist.make_mesh()
    state = dist.replicate(create_state(method, tx, jnp.zeros((1, 1, 1, 5)), seed=0), mesh)
    mapped = dist.map_step(
        step.TrainStep(method=method, tx=tx, augment=toy_views, axis_name=dist.AXIS, log_every=1),
        mesh,
    )
    with pytest.raises(ValueError, match=r"(?i)replicat|varying"):
        mapped(state, dist.shard_batch(toy_batch(0), mesh))


def test_the_step_can_be_lowered_for_tpus():
    """Which find singular values in a loop, whose state the check wants to be as equal between devices as the input."""
    method, tx, mesh = Toy(gathered), optax.sgd(0.05), dist.make_mesh()
    one_step = step.TrainStep(method=method, tx=tx, augment=toy_views, axis_name=dist.AXIS, log_every=1)
    state = jax.eval_shape(lambda: create_state(method, tx, jnp.zeros((1, 1, 1, 5)), seed=0))
    lowered = dist.map_step(one_step, mesh).trace(state, toy_batch(0)).lower(lowering_platforms=("tpu",))
    assert "all_gather" in lowered.as_text()


def test_health_is_that_of_the_whole_batch_and_only_on_logged_steps():
    _, one = run_toy(gathered, "shard_map", 1, optax.sgd(0.05), steps=6)
    _, eight = run_toy(gathered, "shard_map", 8, optax.sgd(0.05), steps=6)
    for name in panel.names(2):
        np.testing.assert_allclose([h[name] for h in eight], [h[name] for h in one], rtol=1e-4, atol=1e-6)
        logged = [h[name] != 0.0 for h in one]
        assert logged == [True, False, False, False, True, False]  # steps 1 and 5
    assert 0.0 < one[0]["embedding_std"] < 1 / np.sqrt(3) * np.sqrt(BATCH / (BATCH - 1)) + 1e-6
    assert 1.0 <= one[0]["rankme"] <= 3.0 + 1e-3


def test_features_of_a_single_view_are_seen_relative_to_their_mean():
    h = 10.0 + jax.random.normal(jax.random.key(0), (1, 64, 4))
    mesh = Mesh(np.asarray(jax.devices()[:8]), (dist.AXIS,))
    spec = jax.sharding.PartitionSpec(None, dist.AXIS)
    mapped = jax.shard_map(
        lambda h: panel.measure(h, dist.AXIS), mesh=mesh, in_specs=spec, out_specs=jax.sharding.PartitionSpec()
    )
    found = jax.jit(mapped)(h)
    assert set(found) == set(panel.names(1))
    centered = h[0] - h[0].mean(axis=0)
    np.testing.assert_allclose(found["rankme"], spectrum.rankme(centered), rtol=1e-4)
    np.testing.assert_allclose(found["nesum"], spectrum.nesum(h[0]), rtol=1e-4)
    assert found["rankme"] > 3.5 and found["embedding_std"] > 0.45  # not centered 1.5 and 0.05


@functools.cache
def simclr_losses(mapping, devices, batch_norm="sync", lr=2e-5):
    """Losses of 20 steps of SimCLR with resnet8 on noise images."""
    backbone = models.create("resnet8", stages=(1,), batch_norm=batch_norm)
    method = SimCLR(backbone, Schedule(BATCH, STEPS, STEPS, 1000), temperature=0.5, projector=(16, 8))
    view = Augmentation(size=(16, 16), crop_area=(0.3, 1.0), brightness=0.4, contrast=0.4)
    augment = make_augment([view, view], Normalization((0.5,), (0.25,)))
    # At five times the rate a change of 1e-7 in the weights, on one device,
    # becomes one of 1e-3 in the loss within 20 steps, and so would rounding.
    tx = optim.sgd(lambda _: lr, weight_decay=1e-4)
    one_step = step.TrainStep(method=method, tx=tx, augment=augment, axis_name=dist.AXIS, log_every=10)
    state = create_state(method, tx, jnp.zeros((1, 16, 16, 1)), seed=1)
    if mapping == "shard_map":
        mesh = Mesh(np.asarray(jax.devices()[:devices]), (dist.AXIS,))
        state, mapped = dist.replicate(state, mesh), dist.map_step(one_step, mesh)
        place = lambda batch: dist.shard_batch(batch, mesh)  # noqa: E731
    else:
        mapped = jax.pmap(one_step, axis_name=dist.AXIS, devices=jax.devices()[:devices])
        state = jax.tree.map(lambda x: jnp.stack([x] * devices), state)
        place = functools.partial(jax.tree.map, lambda x: x.reshape(devices, -1, *x.shape[1:]))
    history = []
    # Blocks of 4 pixels, so that crops have something in common; the same images in each step.
    image = np.kron(np.random.default_rng(0).integers(0, 256, (BATCH, 5, 5, 1)), np.ones((1, 4, 4, 1))).astype(np.uint8)
    for _ in range(STEPS):
        batch = {"image": image, "index": np.arange(BATCH, dtype=np.int32), "label": np.full(BATCH, -1, np.int32)}
        state, metrics = mapped(state, place(batch))
        history.append(float(np.ravel(metrics["loss"])[0]))
    return np.array(history)


@pytest.mark.parametrize(
    "mapping, devices",
    [
        ("shard_map", 2),
        pytest.param("shard_map", 4, marks=pytest.mark.slow),
        pytest.param("shard_map", 8, marks=pytest.mark.slow),  # see methods/test_every_method.py, too
        pytest.param("pmap", 4, marks=pytest.mark.slow),  # a toy's steps under it are above
    ],
)
def test_simclr_over_20_steps_is_the_same_on_any_number_of_devices(mapping, devices):
    expected = simclr_losses("shard_map", 1)
    # The steps matter, by 20 times what is allowed for below.
    assert np.abs(expected - simclr_losses("shard_map", 1, lr=0.0)).max() > 0.01
    np.testing.assert_allclose(simclr_losses(mapping, devices), expected, rtol=1e-4)


@pytest.mark.slow
def test_local_batch_norm_is_another_computation():
    """So that the test above can fail: it would be blind if statistics did not matter."""
    difference = np.abs(simclr_losses("shard_map", 2, "local") - simclr_losses("shard_map", 1))
    assert difference.max() > 1e-2


def test_a_state_begins_at_given_weights_with_the_teacher_at_them_too():
    facts = Schedule(batch_size=4, steps=10, steps_per_epoch=1, num_images=4)
    backbone = models.create("resnet8", stages=(1,))
    method = BYOL(backbone, facts, projector=(8, 4), predictor=(8, 4))
    images = jnp.zeros((1, 8, 8, 1))
    state = jax.jit(lambda: create_state(method, optax.sgd(0.1), images, 0))()
    given = jax.tree.map(lambda x: np.asarray(x) + 1.0, jax.jit(backbone.init)(jax.random.key(7), images))
    begun = with_backbone(state, given)
    teacher = begun.model_state["teacher"]
    online = (begun.params, begun.model_state["batch_stats"])
    for params, batch_stats in (online, (teacher["params"], teacher["batch_stats"])):
        jax.tree.map(np.testing.assert_array_equal, params["backbone"], given["params"])
        jax.tree.map(np.testing.assert_array_equal, batch_stats["backbone"], given["batch_stats"])
    assert jax.tree.structure(begun) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, begun.params["projector"], state.params["projector"])
    # A step donates its buffers: no two places share one, or the given weights.
    leaves = jax.tree.leaves((begun.params["backbone"], teacher["params"]["backbone"], given["params"]))
    arrays = [jnp.asarray(leaf) for leaf in leaves]  # all alive at once, or one may take the place of another
    assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(leaves)
    placed = dist.create_state(lambda given: with_backbone(state, given), dist.make_mesh(), given)
    leaves = jax.tree.leaves((placed.params, placed.model_state))
    assert len({leaf.addressable_shards[0].data.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
    with pytest.raises(ValueError, match="no network to begin with given weights"):
        with_backbone(state.replace(params={}, model_state={}), given)
    other = jax.eval_shape(models.create("resnet8", stages=(1,), width=2.0).init, jax.random.key(0), images)
    with pytest.raises(ValueError, match="have another architecture"):
        with_backbone(state, other)
