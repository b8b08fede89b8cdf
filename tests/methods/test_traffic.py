"""What a step sends between devices, read off the compiled program: no more than its method is known to need."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.methods import METHODS, Base, Output, Traffic
from ssl_jax.planning import hlo, plan, program
from ssl_jax.training import augmenting, build, step
from ssl_jax.training.state import create_state
from tests.methods.teachers import with_teacher

BATCH, IMAGES = 64, 60_000
HALVED = ("simclr", "byol")  # of one stage, which is half of the program and enough
SCALARS = 1024  # bytes: the loss, metrics, counts (of visible positions, for each BatchNorm), weights of classes


@dataclasses.dataclass(frozen=True)
class Facts:
    """groups: of the model's BatchNorm. parameters, statistics, teacher_statistics: bytes of them (mean and variance of
    each BatchNorm)."""

    groups: int
    parameters: int
    statistics: int
    teacher_statistics: int

    def allowed(self, declared):
        """{kind of collective: bytes} of a `Traffic`. The gradient of each parameter is summed over devices once."""
        backward = declared.passes * self.statistics * (self.groups if declared.grouped else 1)
        forward = declared.passes * self.statistics + declared.teacher_passes * self.teacher_statistics
        # Groups that no device shares with another send but their averages.
        averages = forward if declared.grouped else 0
        return {
            "all-reduce": self.parameters + backward + averages + declared.reduced + SCALARS,
            "all-gather": declared.gathered + jax.device_count() * forward + SCALARS,
            "reduce-scatter": declared.scattered,
        }


def audit(moved, facts, declared, image_sizes):
    """A sentence for each excess; [] where nothing is sent that is not declared."""
    allowed, found = facts.allowed(declared), []
    for kind in hlo.COLLECTIVES:
        sent = sum(c.times * c.bytes for c in moved if c.kind == kind and not c.conditional)
        if sent > allowed.get(kind, 0):
            lines = [f"{c.bytes} {c.stack[:2]}" for c in moved if c.kind == kind and not c.conditional]
            found.append(f"{kind}: {sent} bytes, {allowed.get(kind, 0)} are declared: {lines}")
    for collective in moved:
        shapes = [s.dims for s in collective.shapes if any(s.dims[-3:-1] == size for size in image_sizes)]
        if shapes and collective.kind != "all-reduce" and not declared.images:
            found.append(f"images {shapes} are moved by {collective.stack[:2]}")
    return found


@functools.cache
def compile_method(name, *, shard_state=False):
    config = with_teacher(configs.get_config(f"{name}:tiny"))
    config.batch_size = 128 if name == "w_mse" else BATCH  # which whitens 128 rows together
    if name in HALVED:
        config.model = {**config.model, "stages": (1,)}
    images = 8000 if name == "exemplar" else IMAGES  # each a class
    config = configs.parse(config)
    training = build.training(config, build.schedule(config, images, 10))
    state = jax.eval_shape(training.create_state)
    batch = plan.batch_shapes(config, training, images)
    compiled = dist.compile_step(training.step, dist.make_mesh(), state, batch, shard_state=shard_state)
    facts = Facts(
        config.model.get("batch_norm_groups", 1),
        plan.tree_bytes(state.params),
        plan.tree_bytes(state.model_state.get("batch_stats", {})),
        plan.tree_bytes(state.model_state.get("teacher", {}).get("batch_stats", {})),
    )
    declared = training.method.traffic(augmenting.view_shape(training.augmentations[0], config.data.channels))
    sizes = {augmentation.size for augmentation in training.augmentations}
    return program.collectives(hlo.parse(compiled.as_text())), facts, sizes, declared


def each_method():
    marks = {"simclr": (), **dict.fromkeys(("byol", "barlow_twins", "moco_v2", "mae"), pytest.mark.slow)}
    return [pytest.param(name, marks=marks.get(name, pytest.mark.every_method)) for name in METHODS]


@pytest.mark.parametrize("name", each_method())
def test_methods_send_what_is_declared_and_no_more(name):
    moved, facts, image_sizes, declared = compile_method(name)
    assert audit(moved, facts, declared, image_sizes) == []
    # The gradient is among it: else nothing was found.
    assert sum(c.bytes for c in moved if c.kind == "all-reduce") >= facts.parameters - declared.unused
    # Now and then the embeddings are gathered for the health metrics, and nothing else.
    assert {c.kind for c in moved if c.conditional} == {"all-gather"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byol", "dino"])
def test_a_sharded_state_is_gathered_once_and_its_gradient_summed_once(name):
    whole, facts, *_ = compile_method(name)
    moved, *_ = compile_method(name, shard_state=True)

    def sent(moved, kind):
        return sum(c.times * c.bytes for c in moved if c.kind == kind and not c.conditional)

    # The student and its copy, the teacher, which has no predictor.
    gathered = sent(moved, "all-gather") - sent(whole, "all-gather")  # without what a whole state gathers, too
    assert facts.parameters < gathered <= 2 * facts.parameters
    assert sent(moved, "reduce-scatter") <= facts.parameters
    assert sent(moved, "reduce-scatter") + sent(moved, "all-reduce") <= sent(whole, "all-reduce") + SCALARS


@dataclasses.dataclass(frozen=True)
class Toy(Base):
    """A linear map of the image; `gather`: of all devices' images. `uses`: how often the parameter is used."""

    gather: bool = False
    uses: int = 1

    def init(self, rng, images):
        return {"w": jnp.ones((images.shape[-3] * images.shape[-2], 500))}, {"nothing": jnp.zeros(())}

    def loss(self, params, state, batch, rng, *, axis_name=None):
        x = batch["views"][0]
        x = lax.all_gather(x, axis_name, tiled=True) if self.gather else x
        z = sum(jnp.tanh((n + 1) * x.reshape(len(x), -1) @ params["w"]) for n in range(self.uses))
        loss = jnp.mean(z**2)
        return Output(loss, state, {}, z[None, :8])


def toy_step(step_of, toy):
    tx = optax.sgd(0.1)
    augment = lambda rng, batch: {"views": (batch["image"].astype(jnp.float32) / 255,)}  # noqa: E731
    one_step = step_of(method=toy, tx=tx, augment=augment, axis_name=dist.AXIS, log_every=10)
    state = jax.eval_shape(lambda: create_state(toy, tx, jnp.zeros((1, 6, 5, 1)), 0))
    batch = {"image": jax.ShapeDtypeStruct((BATCH, 6, 5, 1), jnp.uint8)}
    compiled = dist.compile_step(one_step, dist.make_mesh(), state, batch)
    facts = Facts(1, plan.tree_bytes(state.params), 0, 0)
    return audit(program.collectives(hlo.parse(compiled.as_text())), facts, Traffic(), {(6, 5)})


class Twice(step.TrainStep):
    """Averages its gradients over the devices once more, though they are the same on all."""

    def gradients(self, state, batch, *axes, **options):
        grads, found = super().gradients(state, batch, *axes, **options)
        return lax.pmean(lax.pcast(grads, dist.AXIS, to="varying"), dist.AXIS), found


def test_the_audit_sees_images_that_are_gathered_and_parameters_that_are_sent_twice():
    assert toy_step(step.TrainStep, Toy()) == []
    gathered = toy_step(step.TrainStep, Toy(gather=True))
    assert any(line.startswith("all-gather") for line in gathered) and any("images" in line for line in gathered)
    (excess,) = toy_step(Twice, Toy())
    assert excess.startswith("all-reduce: 12")  # twice 6 * 5 * 500 float32


def test_a_parameter_used_twice_is_sent_once():
    assert toy_step(step.TrainStep, Toy(uses=3)) == []
