"""What a step sends between devices, read off the compiled program: no more than its method is known to need."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

from ssl_jax import build, parallel, plan, step
from ssl_jax import config as configs
from ssl_jax.planning import hlo, program

ROOT = Path(__file__).parents[1]
BATCH, IMAGES = 64, 60_000
SCALARS = 1024  # bytes: the loss, metrics, counts


@dataclasses.dataclass(frozen=True)
class Facts:
    """config: the method's. parameters, statistics, teacher_statistics: bytes of them (mean and variance of each
    BatchNorm), which cross once for each pass forward and once for each pass back."""

    config: object
    parameters: int
    statistics: int
    teacher_statistics: int


@dataclasses.dataclass(frozen=True)
class Declared:
    """Bytes a step that a method sends beside the gradient, of which each parameter is summed over devices once.

    reduced: by all-reduce. gathered: by all-gather, of embeddings. scattered: by reduce-scatter, which is the
    gradient of the gathering where it has one. images: whether it may gather images.
    """

    reduced: Callable[[Facts], int] = lambda facts: 0
    gathered: Callable[[Facts], int] = lambda facts: 0
    scattered: Callable[[Facts], int] = lambda facts: 0
    images: bool = False


def embeddings(facts, views=1):
    """float32 rows of the last layer of the projector."""
    return views * BATCH * facts.config.method.projector[-1] * 4


DECLARED = {
    # Both views pass together, forward and back; all embeddings are gathered, and their gradient scattered.
    "simclr": Declared(
        reduced=lambda f: 2 * f.statistics,
        gathered=lambda f: embeddings(f, views=2),
        scattered=lambda f: embeddings(f, views=2),
    ),
    # Each view passes by itself; the teacher has no gradient.
    "byol": Declared(reduced=lambda f: 4 * f.statistics + 2 * f.teacher_statistics),
    # The correlation, and of both views mean and variance of each dimension, forward and back.
    "barlow_twins": Declared(
        reduced=lambda f: 4 * f.statistics + 4 * f.config.method.projector[-1] * (f.config.method.projector[-1] + 8)
    ),
    # Each view passes as query and as key, with statistics of each group of rows, and the running ones. The keys'
    # images, float32, are gathered for a shuffle, the keys to be put back in order and, of one view, for the queue.
    "moco_v2": Declared(
        reduced=lambda f: (4 * f.statistics + 2 * f.teacher_statistics) * (f.config.model.batch_norm_groups + 1),
        gathered=lambda f: 2 * BATCH * 28 * 28 * 4 + embeddings(f, views=3),
        images=True,
    ),
    "mae": Declared(),
}


def audit(moved, facts, declared, image_sizes):
    """A sentence for each excess; [] where nothing is sent that is not declared."""
    allowed = {
        "all-reduce": facts.parameters + declared.reduced(facts) + SCALARS,
        "all-gather": declared.gathered(facts),
        "reduce-scatter": declared.scattered(facts),
    }
    found = []
    for kind in program.COLLECTIVES:
        sent = sum(c.times * c.bytes for c in moved if c.kind == kind and not c.conditional)
        if sent > allowed.get(kind, 0):
            lines = [f"{c.bytes} {c.stack[:2]}" for c in moved if c.kind == kind and not c.conditional]
            found.append(f"{kind}: {sent} bytes, {allowed.get(kind, 0)} are declared: {lines}")
    for collective in moved:
        shapes = [s.dims for s in collective.shapes if any(s.dims[-3:-1] == size for size in image_sizes)]
        if shapes and collective.kind != "all-reduce" and not declared.images:
            found.append(f"images {shapes} are moved by {collective.stack[:2]}")
    return found


def compile_method(name):
    config = configs.load_file(str(ROOT / "configs" / f"{name}.py:tiny"))
    config.batch_size = BATCH
    training = build.training(config, build.facts(config, IMAGES, 10))
    state = jax.eval_shape(training.create_state)
    batch = plan.batch_shapes(config, training, IMAGES)
    compiled = parallel.compile_step(training.step, parallel.make_mesh(), state, batch)
    facts = Facts(
        config,
        plan.tree_bytes(state.params),
        plan.tree_bytes(state.model_state.get("batch_stats", {})),
        plan.tree_bytes(state.model_state.get("teacher", {}).get("batch_stats", {})),
    )
    return program.collectives(hlo.parse(compiled.as_text())), facts, {a.size for a in training.augmentations}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("simclr", "byol") else pytest.mark.slow) for name in DECLARED]
)
def test_methods_send_what_is_declared_and_no_more(name):
    moved, facts, image_sizes = compile_method(name)
    assert audit(moved, facts, DECLARED[name], image_sizes) == []
    # The gradient is among it: else nothing was found.
    assert sum(c.bytes for c in moved if c.kind == "all-reduce") >= facts.parameters
    # Now and then the embeddings are gathered for the health metrics, and nothing else.
    assert {c.kind for c in moved if c.conditional} == {"all-gather"}


@dataclasses.dataclass(frozen=True)
class Toy:
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
        return loss, (state, {"loss": loss, "embeddings": z[None, :8]})

    def update(self, params, state, number):
        return state


def toy_step(step_of, toy):
    tx = optax.sgd(0.1)
    augment = lambda rng, batch: {"views": (batch["image"].astype(jnp.float32) / 255,)}  # noqa: E731
    one_step = step_of(method=toy, tx=tx, augment=augment, axis_name=parallel.AXIS, log_every=10)
    state = jax.eval_shape(lambda: step.create_state(toy, tx, jnp.zeros((1, 6, 5, 1)), 0))
    batch = {"image": jax.ShapeDtypeStruct((BATCH, 6, 5, 1), jnp.uint8)}
    compiled = parallel.compile_step(one_step, parallel.make_mesh(), state, batch)
    facts = Facts(None, plan.tree_bytes(state.params), 0, 0)
    return audit(program.collectives(hlo.parse(compiled.as_text())), facts, Declared(), {(6, 5)})


class Twice(step.TrainStep):
    """Averages its gradients over the devices once more, though they are the same on all."""

    def gradients(self, state, batch, axes=None):
        grads, found = super().gradients(state, batch, axes)
        return lax.pmean(lax.pcast(grads, parallel.AXIS, to="varying"), parallel.AXIS), found


def test_the_audit_sees_images_that_are_gathered_and_parameters_that_are_sent_twice():
    assert toy_step(step.TrainStep, Toy()) == []
    gathered = toy_step(step.TrainStep, Toy(gather=True))
    assert any(line.startswith("all-gather") for line in gathered) and any("images" in line for line in gathered)
    (excess,) = toy_step(Twice, Toy())
    assert excess.startswith("all-reduce: 12")  # twice 6 * 5 * 500 float32


def test_a_parameter_used_twice_is_sent_once():
    assert toy_step(step.TrainStep, Toy(uses=3)) == []
