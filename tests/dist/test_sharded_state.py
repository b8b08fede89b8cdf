"""A state of which each device keeps a part: the same run as with the whole on each."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.evaluation import online
from ssl_jax.ops import shards
from ssl_jax.planning import plan
from ssl_jax.training import build, reading
from ssl_jax.training.step import TrainStep
from tests.methods.test_every_method import Training, assert_same, held, load, save, sgd

STEPS = 3
LARS = dict(name="lars", lr=1e-3, trust_coefficient=1.0, weight_decay=1e-4, warmup_steps=0, final_lr=0.0)


@pytest.mark.parametrize(
    "name, optimizer",
    [
        ("simclr", LARS),  # whose ratios are of whole leaves
        pytest.param("byol", LARS, marks=pytest.mark.slow),  # with an EMA teacher
        pytest.param("swav", sgd(0.01, clip_norm=0.1), marks=pytest.mark.slow),  # the norm of the whole gradient
        pytest.param("dino", sgd(0.01, clip_each=0.1), marks=pytest.mark.slow),  # the norm of each leaf's
    ],
)
def test_optimizers_that_look_at_whole_leaves_do_so_where_each_device_keeps_a_part(name, optimizer):
    """SGD's rows for every method: methods/test_every_method.py."""
    plain, split = (Training(name, 8, optimizer, shard_state=shard_state) for shard_state in (False, True))
    expected, said = plain.go_on(plain.first(), STEPS)
    found, said_split = split.go_on(split.first(), STEPS)
    assert held(found) < held(expected) / 4  # small leaves are whole
    np.testing.assert_allclose(said_split, said, rtol=1e-5)
    assert_same(found, expected, plain.mesh)


@pytest.mark.slow
@pytest.mark.parametrize("model", [dict(remat="block", scan=True), dict(remat="block", scan=True, microbatch=4)])
def test_a_split_vit_that_saves_memory_trains_as_a_whole_one_that_does_not(model):
    plain = Training("mae", 8, sgd(1e-5), depth=2)
    split = Training("mae", 8, sgd(1e-5), shard_state=True, depth=2, **model)
    expected, said = plain.go_on(plain.first(), STEPS)
    found, said_split = split.go_on(split.first(), STEPS)
    np.testing.assert_allclose(said_split, said, rtol=1e-5)
    assert_same(found, expected, plain.mesh)


@pytest.mark.slow
def test_crops_of_two_sizes_pass_a_split_vit_together_with_the_same_result():
    # With a higher drop_path some images skip all branches. KoLeo finds their class tokens equal: noise.
    model = dict(depth=2, drop_path=0.1, drop_path_uniform=True)
    plain = Training("dinov2", 8, sgd(1e-2), **model)
    split = Training("dinov2", 8, sgd(1e-2), shard_state=True, remat="block", scan=True, **model)
    expected, said = plain.go_on(plain.first(), STEPS)
    found, said_split = split.go_on(split.first(), STEPS)
    np.testing.assert_allclose(said_split, said, rtol=1e-5)
    assert_same(found, expected, plain.mesh)


@pytest.mark.slow
@pytest.mark.parametrize("shard_state", [False, True])
def test_gradients_in_bfloat16_change_a_run_by_their_rounding(shard_state):
    """Of a whole state, and of a sharded one."""
    plain = Training("simclr", 8, sgd(1e-2))
    rounded = Training("simclr", 8, sgd(1e-2), shard_state=shard_state)
    rounded.step = rounded.mapped(dataclasses.replace(rounded.made.step, reduce_dtype="bfloat16"))
    expected, said = plain.go_on(plain.first(), STEPS)
    found, said_rounded = rounded.go_on(rounded.first(), STEPS)
    np.testing.assert_allclose(said_rounded[:, 0], said[:, 0], rtol=1e-3)
    np.testing.assert_allclose(said_rounded[:, 1], said[:, 1], rtol=3e-2)  # of the gradient, which differs at once
    assert np.max(np.abs(said_rounded - said)) > 0
    for one, other in zip(jax.tree.leaves(found.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "simclr:imagenet_r50",
        "moco_v2:imagenet_r50",
        pytest.param("byol:imagenet_r50", marks=pytest.mark.slow),
        pytest.param("mae:imagenet_vitl16", marks=pytest.mark.slow),
        "dinov2:imagenet_vitg14",
    ],
)
def test_eight_devices_hold_an_eighth_each(name):
    config = load(*name.split(":"))
    config = configs.parse(config)
    training = build.training(config, build.schedule(config, 1_281_167, 1000))
    state = jax.eval_shape(training.create_state)
    one, eight = (plan.state_bytes(state, devices, shard_state=True) for devices in (1, 8))
    assert eight <= one / 7
    assert plan.state_bytes(state, 8, shard_state=False) == one


@pytest.mark.parametrize("name", ["instdisc", "pirl", "cmc", "odc", "pcl", "deepcluster_v2", "sela_v2"])
def test_between_steps_256_devices_hold_no_bank_of_imagenet_whole(name):
    config = configs.parse(load(name))
    training = build.training(config, build.schedule(config, 1_281_167, 1000))
    banks = jax.eval_shape(training.create_state).model_state
    large = {
        jax.tree_util.keystr(path): dist.shard_axes(leaf, 256)
        for path, leaf in jax.tree_util.tree_leaves_with_path(banks)
        if leaf.size >= 1_281_167
    }
    assert large and shards.REPLICATED not in large.values(), large


def test_the_longest_axis_that_divides_is_split_and_small_leaves_are_not():
    shapes = [(3, 3, 16, 64), (1024,), (100,), (6, 1000), (7, 1001), ()]
    axes = dist.shard_axes([jnp.zeros(shape) for shape in shapes], 8)
    assert axes == [3, 0, shards.REPLICATED, 1, shards.REPLICATED, shards.REPLICATED]


def equations(jaxpr):
    """Of a jaxpr and all within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("remat", ["none", "dots", "block"])
def test_a_transformers_blocks_are_gathered_where_they_are_used_and_with_remat_again_in_the_backward_pass(remat):
    config = load("mae").unlock()
    config.model.update(depth=2, remat=remat)
    config = configs.parse(config)
    training = build.training(config, build.schedule(config, 60_000, 10))
    step = dist.map_step(training.step, dist.make_mesh(), shard_state=True)
    state, batch = jax.eval_shape(training.create_state), plan.batch_shapes(config, training, 60_000)
    gathered = collections.Counter(
        equation.outvars[0].aval.shape
        for equation in equations(step.trace(state, batch).jaxpr)
        if equation.primitive.name == "all_gather"
    )
    dim = config.model["dim"]
    assert gathered[dim, 3 * dim] == (2 if remat == "none" else 4)  # qkv of each block
    assert gathered[4, 4, 1, dim] == 1  # the patches' embedding is whole from the beginning


@pytest.mark.parametrize("model", [dict(scan=True), dict(scan=True, remat="block"), dict(microbatch=2)], ids=str)
def test_where_loops_may_gather_they_gather_a_block_at_a_time(model, monkeypatch):
    """As on TPUs and GPUs; CPUs gather all before the loop."""
    config = load("mae").unlock()
    config.model.update(depth=2, **model)
    config = configs.parse(config)
    training = build.training(config, build.schedule(config, 60_000, 10))
    state, batch = jax.eval_shape(training.create_state), plan.batch_shapes(config, training, 60_000)
    gradients = TrainStep.gradients

    def in_loops(where):
        monkeypatch.setattr(
            TrainStep, "gradients", lambda *args, **options: gradients(*args, **options | {"in_loops": where})
        )
        step = dist.map_step(training.step, dist.make_mesh(), shard_state=True)
        loops = [e for e in equations(step.trace(state, batch).jaxpr) if e.primitive.name == "scan"]
        inside = [e for loop in loops for e in equations(loop.params["jaxpr"].jaxpr)]
        return {e.outvars[0].aval.shape for e in inside if e.primitive.name == "all_gather"}

    dim = config.model["dim"]
    assert (dim, 3 * dim) in in_loops(True) and in_loops(False) == set()


def test_crops_of_two_sizes_gather_each_block_once():
    """Once for the student and once for the teacher; on CPUs before the loop over the blocks."""
    config = load("dinov2").unlock()
    config.model.update(depth=2, scan=True, remat="block")
    config = configs.parse(config)
    training = build.training(config, build.schedule(config, 60_000, 10))
    state, batch = jax.eval_shape(training.create_state), plan.batch_shapes(config, training, 60_000)
    assert len({view.size for view in training.augmentations}) == 2
    step = dist.map_step(training.step, dist.make_mesh(), shard_state=True)
    gathered = [e for e in equations(step.trace(state, batch).jaxpr) if e.primitive.name == "all_gather"]
    dim = config.model["dim"]
    assert sum(e.outvars[0].aval.shape == (dim, 3 * dim) for e in gathered) == 2 * 2


@pytest.mark.slow
def test_a_state_saved_by_eight_goes_on_on_four_and_on_one(tmp_path):
    eight = Training("byol", 8, LARS, shard_state=True)
    halfway, _ = eight.go_on(eight.first(), 2)
    save(tmp_path / "checkpoints", halfway)
    _, expected = eight.go_on(halfway, 2)
    for other in (Training("byol", 4, LARS, shard_state=True), Training("byol", 1, LARS)):
        _, said = other.go_on(other.restore(tmp_path / "checkpoints"), 2)
        np.testing.assert_allclose(said[:, 0], expected[:, 0], rtol=1e-4)
        np.testing.assert_allclose(said[:, 1], expected[:, 1], rtol=2e-3)  # in which LARS makes more of rounding


def test_for_the_online_knn_each_device_gets_the_backbone_and_no_more(monkeypatch):
    """Not the teacher or the queue, and no second copy: it is all that a device must hold beside its part."""
    config = load("moco_v2").unlock()
    config.data.split, config.online_knn.bank, config.online_knn.queries = "train[:2%]", 200, 100
    config.method.queue_size = 1024
    config = configs.parse(config)
    source, mesh = reading.source(config), dist.make_mesh(jax.devices()[:4])
    training = build.training(config, build.schedule(config, len(source), 10))
    state = dist.create_state(training.create_state, mesh, shard_state=True)
    monkeypatch.setattr(dist, "make_local_mesh", lambda: mesh)  # as in a process of these devices alone
    given, gather = [], dist.gather_state
    monkeypatch.setattr(dist, "gather_state", lambda tree, mesh: given.append(gather(tree, mesh)) or given[-1])
    used, map_rows = [], dist.map_rows

    def mapped(function, mesh):
        run = map_rows(function, mesh)
        return lambda variables, rows: used.append(variables) or run(variables, rows)

    monkeypatch.setattr(dist, "map_rows", mapped)
    knn = online.make_online_knn(config, reading.normalization(config), source, training.method, mesh)
    accuracy = knn(state)
    assert 0 <= accuracy <= 100
    backbone = training.method.backbone_variables(state.params, state.model_state)
    assert jax.tree.map(jnp.shape, given) == [jax.tree.map(jnp.shape, backbone)]
    places = lambda tree: [  # noqa: E731
        {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards} for leaf in jax.tree.leaves(tree)
    ]
    assert places(used[0]) == places(given)
