"""A state of which each device keeps a part: the same run as with the whole on each."""

import collections
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from ssl_jax import build, checkpoint, parallel, plan, train, weights
from ssl_jax.data import pipeline
from ssl_jax.methods import METHODS
from ssl_jax.step import TrainStep
from tests.methods.test_every_method import SMALLER, images, load

ROOT = Path(__file__).parents[1]
BATCH, STEPS = 64, 3
# LARS, whose ratios are of whole leaves, alone and with an EMA teacher; a queue; prototypes that are constrained, and
# the whole gradient's norm clipped. The first is of the default tier.
OFTEN = ("simclr", "byol", "moco_v2", "swav")
CHANGES = {
    "simclr": dict(name="lars", lr=1e-3, trust_coefficient=1.0, weight_decay=1e-4, warmup_steps=0, final_lr=0.0),
    "byol": dict(name="lars", lr=1e-3, trust_coefficient=1.0, weight_decay=1e-4, warmup_steps=0, final_lr=0.0),
    "swav": dict(name="sgd", lr=0.01, weight_decay=1e-4, warmup_steps=0, final_lr=0.0, clip_norm=0.1),
    # Its neighbors change with less than others' losses do.
    "nnclr": dict(name="sgd", lr=1e-7, weight_decay=0.0, warmup_steps=0, final_lr=0.0),
    # Each leaf's norm clipped.
    "dino": dict(name="sgd", lr=0.01, weight_decay=1e-4, warmup_steps=0, final_lr=0.0, clip_each=0.1),
}


class Run:
    def __init__(self, name, devices, *, shard_state, **model):
        config = load(name).unlock()
        config.model.update({key: value for key, value in SMALLER.items() if key in config.model} | model)
        config.batch_size = 128 if name == "w_mse" else BATCH  # which whitens 128 rows together
        # Not Adam, whose first steps are as long for any gradient and make much of rounding; at a rate so small that no
        # nearest neighbor changes with it.
        config.optimizer = CHANGES.get(name, dict(name="sgd", lr=1e-5, weight_decay=0.0, warmup_steps=0, final_lr=0.0))
        source = images(config.data.channels)
        self.mesh, self.shard_state = parallel.make_mesh(jax.devices()[:devices]), shard_state
        training = build.training(config, build.facts(config, len(source), 10))
        self.create = training.create_state
        self.step = parallel.map_step(training.step, self.mesh, shard_state=shard_state)
        self.batches = lambda start: pipeline.train_batches(
            source,
            seed=0,
            batch_size=config.batch_size,
            image_size=config.data.image_size,
            crops=[augmentation.crop for augmentation in training.augmentations],
            start_step=start,
        )

    def first(self):
        return parallel.create_state(self.create, self.mesh, shard_state=self.shard_state)

    def go_on(self, state, steps):
        """(the state after these steps; loss and gradient's norm of each)"""
        batches, said = self.batches(int(state.step)), []
        for _ in range(steps):
            state, metrics = self.step(state, parallel.split_batch(next(batches), self.mesh))
            said.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        return state, np.array(said)


def numbers(state):
    """The leaves but for random keys."""
    return [x for x in jax.tree.leaves(state) if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)]


def held(state):
    """Bytes on the first device."""
    return sum(x.addressable_shards[0].data.nbytes for x in numbers(state))


def assert_same(found, expected, mesh):
    pair = (jax.device_get(parallel.gather_state(numbers(state), mesh)) for state in (found, expected))
    for a, b in zip(*pair, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1e-2))


def each_method():
    marks = {**dict.fromkeys(OFTEN, pytest.mark.slow), OFTEN[0]: ()}
    return [pytest.param(name, marks=marks.get(name, pytest.mark.every_method)) for name in METHODS]


@pytest.mark.parametrize("name", each_method())
def test_every_method_trains_as_with_the_whole_state_on_each_device(name):
    # Half of the program is enough, and in a deeper network LARS makes more of rounding.
    model = {"stages": (1,)} if name in ("simclr", "byol") else {}
    plain, sharded = Run(name, 8, shard_state=False, **model), Run(name, 8, shard_state=True, **model)
    expected, said = plain.go_on(plain.first(), STEPS)
    first = sharded.first()
    size = held(first)
    found, said_sharded = sharded.go_on(first, STEPS)
    assert held(found) == size < held(expected) / 5.5  # small leaves are whole
    np.testing.assert_allclose(said_sharded, said, rtol=1e-5)
    assert_same(found, expected, plain.mesh)


@pytest.mark.slow
@pytest.mark.parametrize("model", [dict(remat=True, scan=True), dict(remat=True, scan=True, microbatch=4)])
def test_a_split_vit_that_saves_memory_trains_as_a_whole_one_that_does_not(model):
    plain, sharded = Run("mae", 8, shard_state=False), Run("mae", 8, shard_state=True, **model)
    expected, said = plain.go_on(plain.first(), STEPS)
    found, said_sharded = sharded.go_on(sharded.first(), STEPS)
    np.testing.assert_allclose(said_sharded, said, rtol=1e-5)
    assert_same(found, expected, plain.mesh)


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
    training = build.training(config, build.facts(config, 1_281_167, 1000))
    state = jax.eval_shape(training.create_state)
    one, eight = (plan.state_bytes(state, devices, shard_state=True) for devices in (1, 8))
    assert eight <= one / 7
    assert plan.state_bytes(state, 8, shard_state=False) == one


def test_the_longest_axis_that_divides_is_split_and_small_leaves_are_not():
    shapes = [(3, 3, 16, 64), (1024,), (100,), (6, 1000), (7, 1001), ()]
    axes = parallel.split_axes([jnp.zeros(shape) for shape in shapes], 8)
    assert axes == [3, 0, parallel.WHOLE, 1, parallel.WHOLE, parallel.WHOLE]


def equations(jaxpr):
    """Of a jaxpr and all within it."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("remat", [False, True])
def test_a_transformers_blocks_are_gathered_where_they_are_used_and_with_remat_again_in_the_backward_pass(remat):
    config = load("mae").unlock()
    config.model.update(depth=2, remat=remat)
    training = build.training(config, build.facts(config, 60_000, 10))
    step = parallel.map_step(training.step, parallel.make_mesh(), shard_state=True)
    state, batch = jax.eval_shape(training.create_state), plan.batch_shapes(config, training, 60_000)
    gathered = collections.Counter(
        equation.outvars[0].aval.shape
        for equation in equations(jax.make_jaxpr(step)(state, batch).jaxpr)
        if equation.primitive.name == "all_gather"
    )
    dim = config.model.dim
    assert gathered[dim, 3 * dim] == (4 if remat else 2)  # qkv of each block
    assert gathered[4, 4, 1, dim] == 1  # the patches' embedding is whole from the beginning


@pytest.mark.parametrize("model", [dict(scan=True), dict(scan=True, remat=True), dict(microbatch=2)], ids=str)
def test_where_loops_may_gather_they_gather_a_block_at_a_time(model, monkeypatch):
    """As on TPUs and GPUs; CPUs gather all before the loop."""
    config = load("mae").unlock()
    config.model.update(depth=2, **model)
    training = build.training(config, build.facts(config, 60_000, 10))
    state, batch = jax.eval_shape(training.create_state), plan.batch_shapes(config, training, 60_000)
    gradients = TrainStep.gradients

    def in_loops(where):
        monkeypatch.setattr(TrainStep, "gradients", lambda *args, in_loops: gradients(*args, in_loops=where))
        step = parallel.map_step(training.step, parallel.make_mesh(), shard_state=True)
        loops = [e for e in equations(jax.make_jaxpr(step)(state, batch).jaxpr) if e.primitive.name == "scan"]
        inside = [e for loop in loops for e in equations(loop.params["jaxpr"].jaxpr)]
        return {e.outvars[0].aval.shape for e in inside if e.primitive.name == "all_gather"}

    dim = config.model.dim
    assert (dim, 3 * dim) in in_loops(True) and in_loops(False) == set()


@pytest.mark.slow
def test_a_state_saved_by_eight_goes_on_on_four_and_on_one(tmp_path):
    eight = Run("byol", 8, shard_state=True)
    halfway, _ = eight.go_on(eight.first(), 2)
    checkpoints = checkpoint.Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(2, halfway)
    checkpoints.close()
    _, expected = eight.go_on(halfway, 2)
    for other in (Run("byol", 4, shard_state=True), Run("byol", 1, shard_state=False)):
        restored = checkpoint.Checkpoints(tmp_path / "checkpoints").restore(other.first())
        _, said = other.go_on(restored, 2)
        np.testing.assert_allclose(said[:, 0], expected[:, 0], rtol=1e-4)
        np.testing.assert_allclose(said[:, 1], expected[:, 1], rtol=2e-3)  # in which LARS makes more of rounding


def test_for_the_online_knn_each_device_gets_the_backbone_and_no_more(monkeypatch):
    """Not the teacher or the queue, and no second copy: it is all that a device must hold beside its part."""
    config = load("moco_v2").unlock()
    config.data.split, config.online_knn.bank, config.online_knn.queries = "train[:2%]", 200, 100
    config.method.queue_size = 1024
    source, mesh = build.source(config), parallel.make_mesh(jax.devices()[:4])
    training = build.training(config, build.facts(config, len(source), 10))
    state = parallel.create_state(training.create_state, mesh, shard_state=True)
    monkeypatch.setattr(parallel, "make_local_mesh", lambda: mesh)  # as in a process of these devices alone
    given, gather = [], parallel.gather_state
    monkeypatch.setattr(parallel, "gather_state", lambda tree, mesh: given.append(gather(tree, mesh)) or given[-1])
    used, map_rows = [], parallel.map_rows

    def mapped(function, mesh):
        run = map_rows(function, mesh)
        return lambda variables, rows: used.append(variables) or run(variables, rows)

    monkeypatch.setattr(parallel, "map_rows", mapped)
    accuracy = train.make_online_knn(config, source, training.method, mesh)(state)
    assert 0 <= accuracy <= 100
    backbone = training.method.backbone_variables(state.params, state.model_state)
    assert jax.tree.map(jnp.shape, given) == [jax.tree.map(jnp.shape, backbone)]
    places = lambda tree: [  # noqa: E731
        {shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards} for leaf in jax.tree.leaves(tree)
    ]
    assert places(used[0]) == places(given)


@pytest.mark.slow
def test_training_gives_the_same_backbone_and_may_change_its_mind_halfway(tmp_path):
    """The program, with its online kNN, checkpoints and pictures."""
    options = [
        f"--config={ROOT / 'configs' / 'mae.py'}:tiny",
        "--config.data.split=train[:2%]",
        "--config.batch_size=64",
        "--config.model.depth=2",
        "--config.steps=4",
        "--config.log_every=2",
        "--config.evaluate_every=2",
        "--config.checkpoint_every=2",
        "--config.online_knn.bank=200",
        "--config.online_knn.queries=100",
    ]
    for name, shard in (("whole", "False"), ("sharded", "True")):
        train.main([*options, f"--workdir={tmp_path / name}", f"--config.shard_state={shard}"])
    load_params = lambda name: jax.tree.leaves(weights.load_backbone(tmp_path / name).variables)  # noqa: E731
    for a, b in zip(load_params("sharded"), load_params("whole"), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    (tmp_path / "sharded" / "checkpoints" / "4").rename(tmp_path / "gone")
    train.main([*options, f"--workdir={tmp_path / 'sharded'}", "--config.shard_state=False"])
    for a, b in zip(load_params("sharded"), load_params("whole"), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
