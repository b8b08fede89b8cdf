"""`ssl_jax.pretrain` as a script calls it: with its own images, network, method, optimizer and augmentation."""

import dataclasses
import functools
import json
import os
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ssl_jax
from ssl_jax import losses, methods
from ssl_jax.config import ConfigError
from ssl_jax.training.termination import Stopped

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 4), np.uint8)


class Net(nn.Module):
    """Without train, axis_name, dtype and dim."""

    width: int = 4

    @nn.compact
    def __call__(self, images):
        return jnp.mean(nn.relu(nn.Conv(self.width, (3, 3))(images)), axis=(1, 2))


class NormalizedNet(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.norm = nnx.Conv(4, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, images):
        return jnp.mean(nnx.relu(self.norm(self.conv(images))), axis=(1, 2))


class Items:
    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index]


def half_mirrored(rng, image):
    return jnp.where(jax.random.bernoulli(rng), image[:, ::-1], image)


def two_views(z1, z2, *, axis_name):
    return losses.nt_xent(z1, z2, axis_name=axis_name)


def small(**changes):
    config = ssl_jax.get_config("simclr:tiny")
    config.update(batch_size=16, steps=2, log_every=1, evaluate_every=0, checkpoint_every=1)
    config.data.image_size = config.augment.view.size = (8, 8)
    config.augment.view.update(jitter=0.0, flip=0.0)
    config.method.projector = (4,)
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on given images with a given network, and what it logged."""
    logged = []
    workdir = tmp_path_factory.mktemp("runs") / "net"
    log = lambda step, metrics: logged.append((step, metrics["loss"]))  # noqa: E731
    return ssl_jax.pretrain(small(), IMAGES, workdir=workdir, backbone=Net(), on_metrics=log), logged


def test_a_run_says_what_it_was_given(finished):
    run, logged = finished
    facts = run.facts
    assert facts["backbone"] == {"name": "Net()", "given": True}
    assert facts["method"] == {"name": "simclr", "given": False}
    assert (facts["source"]["kind"], facts["source"]["given"], facts["num_images"]) == ("ArraySource", True, 40)
    assert logged == [(line["step"], line["loss"]) for line in run.metrics] and [step for step, _ in logged] == [1, 2]


def test_images_of_other_channels_bring_their_mean_and_deviation(finished):
    run, _ = finished
    np.testing.assert_allclose(run.backbone.mean, (IMAGES / 255).mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(run.backbone.std, (IMAGES / 255).std((0, 1, 2)), atol=1e-4)
    assert run.backbone.features(IMAGES[:3]).shape == (3, 4)


def test_the_network_is_to_be_given_again_to_load_it(finished):
    run, _ = finished
    with pytest.raises(
        ValueError, match=r"a network that a script gave, Net\(\); give it: load_backbone\(path, model=Net\(\)\)"
    ):
        ssl_jax.load_backbone(run.workdir)
    with pytest.raises(ValueError, match=r"does it have another architecture|the architecture's is"):
        ssl_jax.load_backbone(run.workdir, model=Net(width=5))
    again = ssl_jax.load_backbone(run.workdir, model=Net())
    np.testing.assert_array_equal(again.features(IMAGES[:3]), run.backbone.features(IMAGES[:3]))


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(backbone=Net(width=5)),
            r"began with the backbone Net\(\), and this start has Net\(width=5\); give",
        ),
        (
            dict(),
            r"and this start has resnet8, which the config names; give the same again, pretrain\(\.\.\., backbone=Ne",
        ),
        (dict(backbone=Net(), optimizer=optax.sgd(0.1)), r"began with the optimizer adamw, .*; leave optimizer out"),
        (
            dict(backbone=Net(), augment=half_mirrored),
            "this start has half_mirrored; leave augment out, as it was then",
        ),
        (dict(backbone=Net(), method=methods.TwoView(two_views)), r"this start has TwoView\(loss=two_views"),
    ],
)
def test_who_goes_on_with_something_else_is_told_what_to_give(finished, given, message):
    run, _ = finished
    with pytest.raises(ConfigError, match=message):
        ssl_jax.pretrain(small(), IMAGES, workdir=run.workdir, **given)


def test_who_goes_on_with_other_images_is_told_so(finished):
    run, _ = finished
    with pytest.raises(ConfigError, match=r"images that a program gave, ArraySource 'arrays', but these differ"):
        ssl_jax.pretrain(small(), IMAGES[::-1].copy(), workdir=run.workdir, backbone=Net())


def test_the_same_call_again_changes_nothing(finished, capsys):
    run, _ = finished
    before = (run.workdir / "backbone.safetensors").read_bytes()
    ssl_jax.pretrain(small(), IMAGES, workdir=run.workdir, backbone=Net())
    assert "all 2 steps are done already" in capsys.readouterr().out
    assert (run.workdir / "backbone.safetensors").read_bytes() == before


def test_an_interrupted_run_is_saved_ends_a_loop_and_goes_on_to_the_same_bytes(finished, tmp_path):
    unbroken, _ = finished
    handler = signal.getsignal(signal.SIGINT)
    ctrl_c = lambda step, metrics: os.kill(os.getpid(), signal.SIGINT) if step == 1 else None  # noqa: E731
    with pytest.raises(Stopped, match=r"stopped by SIGINT; step [12] is saved"):
        ssl_jax.pretrain(small(steps=3), IMAGES, workdir=tmp_path / "3", backbone=Net(), on_metrics=ctrl_c)
    assert issubclass(Stopped, KeyboardInterrupt) and signal.getsignal(signal.SIGINT) is handler
    run = ssl_jax.pretrain(small(steps=3), IMAGES, workdir=tmp_path / "3", backbone=Net())
    assert [line["step"] for line in run.metrics] == [1, 2, 3]
    assert [line["loss"] for line in run.metrics][:1] == [line["loss"] for line in unbroken.metrics][:1]


def test_an_nnx_module_an_object_a_loss_an_optimizer_and_an_augmentation_train(tmp_path):
    run = ssl_jax.pretrain(
        small(),
        Items(),
        workdir=tmp_path / "run",
        backbone=NormalizedNet(nnx.Rngs(0)),
        method=methods.TwoView(two_views, projector=(8, 4)),
        optimizer=optax.lion(1e-3),
        augment=half_mirrored,
    )
    facts = run.facts
    assert facts["source"]["name"] == "Items" and facts["augment"] == {"name": "half_mirrored", "given": True}
    assert "ScaleByLionState" in facts["optimizer"]["name"]
    assert all(np.isfinite(line["loss"]) and "lr" not in line for line in run.metrics)
    first = NormalizedNet(nnx.Rngs(0))
    again = ssl_jax.load_backbone(run.workdir, model=first)
    h = again.features(IMAGES[:8])
    first.eval()
    assert np.abs(h - first(again.preprocess(IMAGES[:8]))).max() > 1e-6  # it was trained


@dataclasses.dataclass(frozen=True)
class WithoutLoss:
    backbone: nn.Module
    schedule: methods.Schedule


@pytest.mark.parametrize(
    "given, message",
    [
        (
            dict(backbone="resnet18"),
            r"backbone: a backbone is a flax\.linen\.Module or a flax\.nnx\.Module, got 'resnet18'",
        ),
        (
            dict(backbone=nn.Conv(3, (1, 1))),
            r"gives \[2, 8, 8, 3\] for images \[2, 8, 8, 4\]; .*take the mean over positions",
        ),
        (dict(method=WithoutLoss), r"WithoutLoss has no .*loss.*: inherit from ssl_jax\.methods\.Base"),
        (
            dict(augment=lambda rng, image: image.mean()),
            r"must give a view \[height, width, channels\], got ShapeDtype",
        ),
        (
            dict(augment={"vew": half_mirrored}),
            r"has the sections \['vew'\], but the method needs one for each of its views \['view'\]",
        ),
        (dict(images="photos"), "images must be a source of ssl_jax.data"),
        (dict(images=IMAGES.astype(np.float64)), r"images must be of uint8, .*got float64"),
        (dict(images=IMAGES[:3]), "has 3 images"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_before_any_work(tmp_path, given, message):
    images = given.pop("images", IMAGES)
    with pytest.raises(ConfigError, match=message):
        ssl_jax.pretrain(small(), images, workdir=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()


def test_functions_and_objects_are_called_by_what_tells_them_apart():
    called = ssl_jax.pretraining.called
    assert called(half_mirrored) == "half_mirrored"
    assert called(functools.partial(half_mirrored, image=3)) == "half_mirrored(image=3)"
    assert json.loads(called({"view": half_mirrored})) == {"view": "half_mirrored"}
    assert "0x" not in called(methods.TwoView(two_views))
