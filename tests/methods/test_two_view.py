import jax
import numpy as np
import pytest

from ssl_jax import losses, models
from ssl_jax.methods import METHODS, Method, Schedule, TwoView
from ssl_jax.methods.contract import MEMBERS

SCHEDULE = Schedule(batch_size=8, steps=10, steps_per_epoch=5, num_images=40)
VIEWS = np.random.default_rng(0).normal(size=(2, 8, 12, 12, 1)).astype(np.float32)


def difference(z1, z2, *, axis_name):
    return losses.negative_cosine(z1, z2, axis_name=axis_name)


@pytest.mark.parametrize("together", [True, False])
def test_its_loss_sees_the_projections_of_both_views(together):
    backbone = models.create("resnet8", stages=(1,))
    method = TwoView(difference, projector=(6, 4), together=together)(backbone, SCHEDULE)
    assert isinstance(method, Method) and method.views == ("view", "view")
    params, state = jax.jit(method.init)(jax.random.key(0), VIEWS[0])
    output = jax.jit(method.loss)(params, state, {"views": tuple(VIEWS)}, jax.random.key(1))
    z1, z2 = output.embeddings
    assert z1.shape == (8, 4)
    np.testing.assert_allclose(output.loss, losses.negative_cosine(z1, z2), rtol=1e-5)
    assert set(params) == {"backbone", "projector"} == set(output.state["batch_stats"])


def test_without_projector_the_loss_sees_features():
    method = TwoView(difference, projector=())(models.create("resnet8", stages=(1,)), SCHEDULE)
    assert [*method.networks] == ["backbone"]


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(views=("view",)), r"views must name the augmentations of two views, got \('view',\)"),
        (dict(projector=(8, 0)), r"projector must be widths of at least 1, got \(8, 0\)"),
    ],
)
def test_what_cannot_be_is_refused(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        TwoView(difference, **options)


def test_every_method_is_one_by_the_contract():
    for name, kind in METHODS.items():
        for member in MEMBERS:
            assert hasattr(kind, member) or member in kind.__dataclass_fields__, (name, member)
