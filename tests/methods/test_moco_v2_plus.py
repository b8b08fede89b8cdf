import functools

import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Schedule
from tests.methods.test_moco_v2 import contrast, through, unit

RUN = Schedule(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 8, 8, 1)).astype(np.float32))


def make(**options):
    backbone = models.create("resnet8", width=0.25, stages=(1,))
    return METHODS["moco_v2_plus"](
        backbone, RUN, **{"projector": (12, 6), "queue_size": 24, "temperature": 0.3, **options}
    )


@functools.cache
def start():
    """With a teacher that is not the online network."""
    init = jax.jit(make().init)
    (params, state), (other, _) = (jax.device_get(init(jax.random.key(seed), VIEWS[0])) for seed in (1, 2))
    return params, {**state, "teacher": {**state["teacher"], "params": other}}


def test_each_view_finds_its_key_among_the_other_views_queue():
    method = make()

    @jax.jit
    def run(params, state, views):
        online = {"params": params, "batch_stats": state["batch_stats"]}
        step = method.loss(params, state, {"views": views}, jax.random.key(3))
        return step, [[through(method, v, x) for x in views] for v in (online, state["teacher"])]

    params, state = start()
    output, outputs = jax.device_get(run(params, state, VIEWS))
    (q1, q2), keys = ([unit(z) for z in two] for two in outputs)
    k1, k2 = keys
    queues = [np.asarray(queue["rows"], np.float64) for queue in state["queues"]]
    assert not np.allclose(*queues)
    expected = (contrast(q1, k2, queues[1]) + contrast(q2, k1, queues[0])) / 2
    np.testing.assert_allclose(output.loss, expected, rtol=1e-4)
    for queue, before, key in zip(output.state["queues"], queues, keys, strict=True):
        np.testing.assert_allclose(queue["rows"], np.concatenate([key, before[8:]]), rtol=1e-3, atol=1e-5)
        assert queue["pointer"] == 8
    np.testing.assert_allclose(method.chance_level, np.log(25))


def test_the_teachers_decay_rises_by_half_a_cosine():
    params, state = start()
    update = jax.jit(make(decay=0.5, final_decay=0.9).update)
    before = state["teacher"]["params"]["projector"]["Dense_0"]["kernel"]
    for step, decay in ((0, 0.5), (50, 0.7), (100, 0.9)):
        moved = update(params, state, step)["teacher"]["params"]["projector"]["Dense_0"]["kernel"]
        expected = decay * before + (1 - decay) * params["projector"]["Dense_0"]["kernel"]
        np.testing.assert_allclose(moved, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "not a multiple of batch_size=8; use 16"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"final_decay": 1.1}, "final_decay must be in 0..1"),
    ],
)
def test_refuses_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
