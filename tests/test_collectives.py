"""What a step sends between devices, read off the compiled program: no more than its method is known to need."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

from ssl_jax import build, parallel, plan, step
from ssl_jax import config as configs
from ssl_jax.methods import METHODS
from ssl_jax.planning import hlo, program

BATCH, IMAGES = 64, 60_000
DIM, PATCH = 64, 7  # of embeddings where there is no projector, and of tiny ViTs' patches, in pixels
HALVED = ("simclr", "byol")  # of one stage, which is half of the program and enough
SCALARS = 1024  # bytes: the loss, metrics, counts, weights of classes


@dataclasses.dataclass(frozen=True)
class Facts:
    """method, model: sections of the config. batch: images a step. parameters, statistics, teacher_statistics: bytes of
    them (mean and variance of each BatchNorm)."""

    method: Mapping[str, Any]
    model: Mapping[str, Any]
    batch: int
    parameters: int
    statistics: int
    teacher_statistics: int

    def rows(self, times: int = 1) -> int:
        """Bytes of the batch's embeddings."""
        dim = self.method.projector[-1] if "projector" in self.method else DIM
        return times * self.batch * dim * 4

    @property
    def numbers(self) -> int:
        """Bytes of one number for each image."""
        return self.batch * 4


@dataclasses.dataclass(frozen=True)
class Declared:
    """What a method sends in a step, beside the gradient, of which each parameter is summed over the devices once.

    passes, teacher_passes: through BatchNorm, each with its statistics, of the student again in the backward pass;
    several views that pass together are one, of two sizes two. grouped: with those of each of batch_norm_groups, too.
    reduced: by all-reduce, bytes. gathered: by all-gather, of embeddings. scattered: by reduce-scatter, which is the
    gradient of the gathering where it has one. images: whether it may gather images. unused: bytes of parameters that
    XLA finds to have no gradient, and does not send.
    """

    passes: int = 0
    teacher_passes: int = 0
    grouped: bool = False
    reduced: Callable[[Facts], int] = lambda facts: 0
    gathered: Callable[[Facts], int] = lambda facts: 0
    scattered: Callable[[Facts], int] = lambda facts: 0
    images: bool = False
    unused: int = 0

    def allowed(self, facts: Facts) -> dict[str, int]:
        statistics = 2 * self.passes * facts.statistics + self.teacher_passes * facts.teacher_statistics
        if self.grouped:
            statistics *= facts.model.batch_norm_groups + 1
        return {
            "all-reduce": facts.parameters + statistics + self.reduced(facts) + SCALARS,
            "all-gather": self.gathered(facts),
            "reduce-scatter": self.scattered(facts),
        }


def moments(dim, times=1):
    """The covariance of so many dimensions, and each one's mean and variance, forward and back."""
    return 4 * times * dim * (dim + 8)


def sinkhorn(prototypes, times=1):
    """Three rounds, of each a maximum and a sum of each prototype, and the last sum."""
    return 4 * times * 7 * prototypes


IMAGE = 28 * 28 * 4  # bytes of one as float32: for a shuffle of the teacher's views
PLAIN = Declared(passes=1)  # nothing but BatchNorm's statistics
CLUSTERED = Declared(passes=2, gathered=lambda f: f.rows(2) + f.numbers)  # a bank of both large views
ONE_BANK = Declared(passes=1, gathered=lambda f: f.rows() + f.numbers)
DECLARED = {
    "aim": Declared(),
    "barlow_twins": Declared(passes=2, reduced=lambda f: moments(f.method.projector[-1])),
    # K-means of the patches: their sums and counts, and those drawn for empty codes, by scores of all.
    "beit_kmeans": Declared(
        reduced=lambda f: 4 * f.method.codes * (2 * PATCH**2 + 1), gathered=lambda f: (28 // PATCH) ** 2 * f.numbers
    ),
    "bigan": PLAIN,
    "byol": Declared(passes=2, teacher_passes=2),
    "cmc": Declared(passes=1, gathered=lambda f: f.rows(2) + f.numbers),  # a bank of each half of the colors
    "colorization": PLAIN,
    "counting": PLAIN,
    # The targets of every offset, from all patches of all images.
    "cpc": Declared(
        gathered=lambda f: len(f.method.offsets) * f.method.grid**2 * f.rows(),
        scattered=lambda f: len(f.method.offsets) * f.method.grid**2 * f.rows(),
        unused=384,
    ),
    "data2vec": Declared(),
    "dcgan": Declared(passes=2),
    "dcl": Declared(passes=1, gathered=lambda f: f.rows(2), scattered=lambda f: f.rows(2)),
    "deepcluster_v2": CLUSTERED,
    "denoising": PLAIN,
    # The keys' maps, of 4 x 4, of two heads, and their vectors are put back in order; both queues take a row an image.
    "densecl": Declared(
        passes=1,
        teacher_passes=1,
        grouped=True,
        gathered=lambda f: f.batch * IMAGE + f.rows(2 * 16 + 1 + 2),
        images=True,
    ),
    "dino": Declared(passes=2, teacher_passes=1, reduced=lambda f: 4 * f.method.prototypes),  # the center
    # Each large view's class tokens are compared with all others' by KoLeo.
    "dinov2": Declared(
        reduced=lambda f: sinkhorn(f.method.prototypes, times=2),
        gathered=lambda f: 2 * f.batch * f.model.dim * 4,
        scattered=lambda f: 2 * f.batch * f.model.dim * 4,
    ),
    "emp_ssl": Declared(passes=1, reduced=lambda f: moments(f.method.projector[-1], times=f.method.num_patches)),
    "exemplar": PLAIN,
    "fastsiam": Declared(passes=4),
    # Of both views: the lengths of all dimensions, and the rows, as they are fewer.
    "frossl": Declared(
        passes=2,
        reduced=lambda f: 4 * f.method.projector[-1] * 2 * 2,
        gathered=lambda f: f.rows(2),
        scattered=lambda f: f.rows(2),
    ),
    "hypersphere": Declared(passes=1, gathered=lambda f: f.rows(2), scattered=lambda f: f.rows(2)),
    "ibot": Declared(reduced=lambda f: 4 * f.method.prototypes * 2),  # the centers
    "ijepa": Declared(),
    "inpainting": PLAIN,
    "instdisc": ONE_BANK,
    "jigsaw": PLAIN,
    # The characteristic function, real and imaginary, of 4 views at 17 knots.
    "lejepa": Declared(passes=2, reduced=lambda f: 4 * 2 * 4 * 17 * f.method.directions),
    "mae": Declared(),
    "maskfeat": Declared(),
    "mmcr": Declared(passes=1, reduced=lambda f: moments(f.method.projector[-1])),
    # Each view passes as query and as key. The keys' images are gathered for a shuffle, the keys to be put back in
    # order and for the queue.
    "moco_v2": Declared(
        passes=2, teacher_passes=2, grouped=True, gathered=lambda f: 2 * f.batch * IMAGE + f.rows(4), images=True
    ),
    "moco_v2_plus": Declared(passes=2, teacher_passes=2, gathered=lambda f: f.rows(2)),
    "moco_v3": Declared(passes=2, teacher_passes=2, gathered=lambda f: f.rows(2)),
    # The mean over all of each view's assignments, and its gradient.
    "msn": Declared(passes=2, teacher_passes=1, reduced=lambda f: 4 * 5 * f.method.prototypes),
    "nnbyol": Declared(passes=2, teacher_passes=2, gathered=lambda f: f.rows()),
    "nnclr": Declared(passes=2, gathered=lambda f: f.rows(3), scattered=lambda f: f.rows(2)),
    "odc": ONE_BANK,
    # As moco_v2 with one view each way, a bank in place of the queue, and every image's group of each clustering.
    "pcl": Declared(
        passes=1,
        teacher_passes=1,
        grouped=True,
        gathered=lambda f: f.batch * IMAGE + f.rows(2) + (1 + len(f.method.clusters)) * f.numbers,
        images=True,
    ),
    "pirl": Declared(passes=2, gathered=lambda f: f.rows() + f.numbers),
    "relative_patch": PLAIN,
    "ressl": Declared(
        passes=1, teacher_passes=1, grouped=True, gathered=lambda f: f.batch * IMAGE + f.rows(2), images=True
    ),
    "rotation": PLAIN,
    "sela_v2": CLUSTERED,
    # Both views pass together, forward and back; all embeddings are gathered, and their gradient scattered.
    "simclr": Declared(passes=1, gathered=lambda f: f.rows(2), scattered=lambda f: f.rows(2)),
    "simmim": Declared(),
    "simsiam": Declared(passes=2),
    # The groups' sums and sizes, and their gradient.
    "smog": Declared(
        passes=1,
        teacher_passes=1,
        reduced=lambda f: 2 * 4 * f.method.groups * (f.method.projector[-1] + 1),
        gathered=lambda f: f.rows(),
    ),
    "split_brain": PLAIN,
    "supcon": Declared(passes=1, gathered=lambda f: f.rows(2) + f.numbers, scattered=lambda f: f.rows(4)),
    "supervised": PLAIN,
    "swav": Declared(passes=2, reduced=lambda f: sinkhorn(f.method.prototypes)),
    "tico": Declared(passes=2, teacher_passes=2, reduced=lambda f: moments(f.method.projector[-1], times=2)),
    "vae": PLAIN,
    "vibcreg": Declared(passes=2, reduced=lambda f: moments(f.method.projector[-1], times=2)),
    "vicreg": Declared(passes=2, reduced=lambda f: moments(f.method.projector[-1], times=2)),
    # Of both views; and of both ways between them at each pair of positions: so many by location, all 16 by features.
    "vicregl": Declared(
        passes=2,
        reduced=lambda f: (
            moments(f.method.projector[-1], times=2)
            + moments(f.method.local_projector[-1], times=2 * 2 * (sum(f.method.matches) + 2 * 16))
        ),
    ),
    "w_mse": Declared(passes=2, gathered=lambda f: f.rows(2), scattered=lambda f: f.rows(2)),
}


def audit(moved, facts, declared, image_sizes):
    """A sentence for each excess; [] where nothing is sent that is not declared."""
    allowed, found = declared.allowed(facts), []
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
    config = configs.get_config(f"{name}:tiny")
    config.batch_size = 128 if name == "w_mse" else BATCH  # which whitens 128 rows together
    if name in HALVED:
        config.model = {**config.model, "stages": (1,)}
    images = 8000 if name == "exemplar" else IMAGES  # each a class
    training = build.training(config, build.facts(config, images, 10))
    state = jax.eval_shape(training.create_state)
    batch = plan.batch_shapes(config, training, images)
    compiled = parallel.compile_step(training.step, parallel.make_mesh(), state, batch, shard_state=shard_state)
    facts = Facts(
        config.method,
        config.model,
        config.batch_size,
        plan.tree_bytes(state.params),
        plan.tree_bytes(state.model_state.get("batch_stats", {})),
        plan.tree_bytes(state.model_state.get("teacher", {}).get("batch_stats", {})),
    )
    return program.collectives(hlo.parse(compiled.as_text())), facts, {a.size for a in training.augmentations}


def each_method():
    marks = {"simclr": (), **dict.fromkeys(("byol", "barlow_twins", "moco_v2", "mae"), pytest.mark.slow)}
    return [pytest.param(name, marks=marks.get(name, pytest.mark.every_method)) for name in METHODS]


@pytest.mark.parametrize("name", each_method())
def test_methods_send_what_is_declared_and_no_more(name):
    moved, facts, image_sizes = compile_method(name)
    assert audit(moved, facts, DECLARED[name], image_sizes) == []
    # The gradient is among it: else nothing was found.
    assert sum(c.bytes for c in moved if c.kind == "all-reduce") >= facts.parameters - DECLARED[name].unused
    # Now and then the embeddings are gathered for the health metrics, and nothing else.
    assert {c.kind for c in moved if c.conditional} == {"all-gather"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["byol", "dino"])
def test_a_split_state_is_gathered_once_and_its_gradient_summed_once(name):
    whole, facts, _ = compile_method(name)
    moved, _, _ = compile_method(name, shard_state=True)

    def sent(moved, kind):
        return sum(c.times * c.bytes for c in moved if c.kind == kind and not c.conditional)

    # The student and its copy, the teacher, which has no predictor.
    assert facts.parameters < sent(moved, "all-gather") <= 2 * facts.parameters
    assert sent(moved, "reduce-scatter") <= facts.parameters
    assert sent(moved, "reduce-scatter") + sent(moved, "all-reduce") <= sent(whole, "all-reduce") + SCALARS


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
    facts = Facts({}, {}, BATCH, plan.tree_bytes(state.params), 0, 0)
    return audit(program.collectives(hlo.parse(compiled.as_text())), facts, Declared(), {(6, 5)})


class Twice(step.TrainStep):
    """Averages its gradients over the devices once more, though they are the same on all."""

    def gradients(self, state, batch, axes=None, **options):
        grads, found = super().gradients(state, batch, axes, **options)
        return lax.pmean(lax.pcast(grads, parallel.AXIS, to="varying"), parallel.AXIS), found


def test_the_audit_sees_images_that_are_gathered_and_parameters_that_are_sent_twice():
    assert toy_step(step.TrainStep, Toy()) == []
    gathered = toy_step(step.TrainStep, Toy(gather=True))
    assert any(line.startswith("all-gather") for line in gathered) and any("images" in line for line in gathered)
    (excess,) = toy_step(Twice, Toy())
    assert excess.startswith("all-reduce: 12")  # twice 6 * 5 * 500 float32


def test_a_parameter_used_twice_is_sent_once():
    assert toy_step(step.TrainStep, Toy(uses=3)) == []
