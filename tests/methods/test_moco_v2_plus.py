import jax
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.methods import METHODS, Run
from tests.methods.test_moco_v2 import contrast, through

RUN = Run(batch_size=8, steps=100, steps_per_epoch=10, num_images=40)
VIEWS = tuple(np.random.default_rng(0).normal(size=(2, 8, 12, 12, 1)).astype(np.float32))


def make(**options):
    backbone = models.create("resnet8", width=0.25, stages=(1,))
    return METHODS["moco_v2_plus"](
        backbone, RUN, **{"projector": (12, 6), "queue_size": 24, "temperature": 0.3, **options}
    )


def test_each_view_finds_its_key_among_the_other_views_queue():
    method = make()
    params, state = method.init(jax.random.key(1), VIEWS[0])
    state["teacher"]["params"] = method.init(jax.random.key(2), VIEWS[0])[0]
    online = {"params": params, "batch_stats": state["batch_stats"]}
    q1, q2 = (through(method, online, x) for x in VIEWS)
    keys = k1, k2 = [through(method, state["teacher"], x) for x in VIEWS]
    queues = [np.asarray(queue["rows"], np.float64) for queue in state["queues"]]
    assert not np.allclose(*queues)
    loss, (new_state, _) = method.loss(params, state, {"views": VIEWS}, jax.random.key(3))
    np.testing.assert_allclose(loss, (contrast(q1, k2, queues[1]) + contrast(q2, k1, queues[0])) / 2, rtol=1e-4)
    for queue, before, key in zip(new_state["queues"], queues, keys, strict=True):
        np.testing.assert_allclose(queue["rows"], np.concatenate([key, before[8:]]), rtol=1e-3, atol=1e-5)
        assert queue["pointer"] == 8
    np.testing.assert_allclose(method.chance_level, np.log(25))


def test_the_teachers_decay_rises_by_half_a_cosine():
    method = make(decay=0.5, final_decay=0.9)
    params, state = method.init(jax.random.key(1), VIEWS[0])
    state["teacher"]["params"] = jax.tree.map(np.zeros_like, params)
    for step, decay in ((0, 0.5), (50, 0.7), (100, 0.9)):
        moved = method.update(params, state, step)["teacher"]["params"]["projector"]["Dense_0"]["kernel"]
        np.testing.assert_allclose(moved, (1 - decay) * params["projector"]["Dense_0"]["kernel"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"queue_size": 20}, "no multiple of batch_size=8; use 16"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"final_decay": 1.1}, "final_decay must be in 0..1"),
    ],
)
def test_refuses_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
