"""Facts with known answers."""

import dataclasses

import pytest

from ssl_jax.data.distribution import Histogram
from ssl_jax.data.inspection.advice import advise
from ssl_jax.data.inspection.facts import Channel, Groups, Kind, Labels, Sizes, Split

CHANNEL = Channel(0, 255, 2, 250, 100, 50, Histogram((), ()), 0.0, 0.0, 0, 0.01, 1.0, None)


def kind(dtype="uint8", channels=3, of=None, **changes):
    made = of or tuple(dataclasses.replace(CHANNEL, mean=100 + k) for k in range(channels))
    some = (0.4, 0.41, 0.42, 0.43)[:channels]
    return dataclasses.replace(Kind(dtype, 10, made, (), some, some, ()), **changes)


def split(count=100_000, size=(100, 100), kinds=None, **changes):
    sizes = Sizes(((size, count),))
    made = Split("train", count, count, {}, sizes, kinds or (kind(),), None, None, ())
    return dataclasses.replace(made, **changes)


def advice(train, *held_out, topic):
    return [one for one in advise([train, *held_out], (), (), ())[1] if one.topic == topic]


def flags(train):
    found = advise([train], (), (), ())[1]
    return dict(flag.removeprefix("--config.").split("=", 1) for one in found for flag in one.flags)


@pytest.mark.parametrize(
    "size, side, warns",
    [
        ((28, 28), "28", False),  # as it is
        ((100, 150), "64", False),
        ((500, 375), "96", False),  # 375 / 96 = 3.9
        ((520, 700), "224", False),  # 128 would shrink 4.06 times
        ((5000, 8000), "224", True),
    ],
)
def test_image_size(size, side, warns):
    train = split(size=size)
    assert flags(train)["data.image_size"] == flags(train)["augment.view.size"] == f"({side},{side})"
    assert any(one.warning for one in advice(train, topic="image size")) == warns


def test_small_images_are_not_enlarged_and_a_few_that_are_are_named():
    sizes = Sizes((((300, 300), 88), ((40, 40), 12)))
    found = advice(split(count=100, sizes=sizes), topic="image size")
    assert found[0].says.startswith("Train on 96") and "12 %" in found[1].says and found[1].warning
    sizes = Sizes((((300, 300), 60), ((40, 40), 40)))
    assert flags(split(count=100, sizes=sizes))["data.image_size"] == "(32,32)"


def test_long_images_are_warned_of():
    assert "3.0 times" in advice(split(size=(100, 300)), topic="image size")[-1].because
    assert len(advice(split(size=(100, 190)), topic="image size")) == 1


@pytest.mark.parametrize(
    "count, batch, steps",
    [
        (1_281_167, None, "20000"),  # 5004 steps an epoch
        (10_000, None, "3900"),  # 39 steps, a hundred times
        (802, "128", "1000"),  # 6 steps; at least 1000
        (65, "16", "1000"),
    ],
)
def test_batch_and_steps(count, batch, steps):
    found = flags(split(count))
    assert found.get("batch_size") == batch and found["steps"] == steps


@pytest.mark.parametrize(
    "count, queue, prototypes",
    [
        (1_281_167, None, "3,000 prototypes; dino, ibot, dinov2, dinov3, msn: at most 64,058"),  # the papers' own
        (50_000, "queue_size=4096", "2,500 prototypes; dino, ibot, dinov2, dinov3, msn: at most 2,500"),
        (802, "queue_size=128", "40 prototypes"),  # no queue is shorter than a batch
    ],
)
def test_queue_and_prototypes(count, queue, prototypes):
    found = advice(split(count), topic="queue")
    assert (queue in found[0].says) if queue else not found
    assert prototypes in advice(split(count), topic="prototypes")[0].says


def test_swav_has_its_queue_where_a_batch_cannot_fill_the_prototypes():
    assert "swav also with --config.method.queue_size=2560." in advice(split(50_000), topic="prototypes")[0].says
    assert "swav also" not in advice(split(802), topic="prototypes")[0].says  # 40 prototypes, batches of 128


@pytest.mark.parametrize(
    "dtype, channels, config",
    [
        ("uint8", 3, "simclr:folder"),
        ("uint8", 1, "simclr:folder"),
        ("uint16", 1, "simclr:folder:xray"),
        ("uint8", 4, "simclr:folder:satellite"),
        ("uint16", 3, "simclr:folder:satellite"),
    ],
)
def test_views(dtype, channels, config):
    train = split(kinds=(kind(dtype, channels),))
    assert advise([train], (), (), ())[0] == config
    assert ("augment.view.hue" in flags(train)) == (dtype == "uint8" and channels == 1)
    assert flags(train)["data.channels"] == str(channels)


def test_gray_images_that_are_stored_in_three_channels():
    train = split()
    gray = dataclasses.replace(train.kinds[0], channels=(CHANNEL,) * 3, mean=(0.4,) * 3, std=(0.3,) * 3)
    found = flags(split(kinds=(gray,)))
    assert (found["data.channels"], found["data.mean"], found["data.std"]) == ("1", "(0.4,)", "(0.3,)")
    assert flags(train)["data.channels"] == "3"


def test_kinds_that_differ():
    assert flags(split(kinds=(kind(), kind(channels=1), kind(channels=4))))["data.channels"] == "3"
    (found,) = advice(split(kinds=(kind("uint16", 4), kind("uint16", 3))), topic="channels")
    assert found.warning and found.flags == ("--config.data.channels=4",)


def test_values():
    dim = dataclasses.replace(CHANNEL, greatest=4000, used=4000 / 65535)
    found = advice(split(kinds=(kind("uint16", 1, of=(dim,), value_range=(0.0, 4095.0)),)), topic="values")
    assert found[0].warning and "6.1 %" in found[0].because
    assert found[0].flags[0] == "--config.data.value_range=(0,4095)"
    bright = dataclasses.replace(dim, greatest=60000, used=60000 / 65535)
    found = advice(split(kinds=(kind("uint16", 1, of=(bright,), value_range=(0.0, 6e4)),)), topic="values")
    assert not found[0].warning


def test_missing_values():
    some = dataclasses.replace(CHANNEL, nan=0.1, commonest=7, commonest_share=0.3)
    found = advice(split(kinds=(kind("int16", 1, of=(some,), nodata=(-9999.0,)),)), topic="missing values")
    assert ["10 %" in found[0].says, "data.nodata=(7,)" in found[1].says] == [True, True]
    assert found[2].flags == ("--config.data.nodata=(-9999,)",)


def test_labels_and_neighbors():
    labels = Labels((("a", 900), ("b", 8), ("c", 0), ("d", 10)), 5)
    found = advice(split(920, labels=labels), topic="labels")
    assert [one.says.split(";")[0] for one in found] == [
        "Read scores as means over classes.",
        "1 of 4 classes have fewer than 10 images",
        "1 of 4 classes have no image in train.",
    ]
    assert found[0].warning and "98 %" in found[0].because
    assert flags(split(920, labels=labels))["online_knn.k"] == "8"  # four fifths of the median class, of 10
    even = Labels((("a", 460), ("b", 460)), 0)
    assert not advice(split(920, labels=even), topic="labels") and "online_knn.k" not in flags(split(labels=even))


def test_groups_unreadable_and_blank():
    train = split(1000, groups=Groups(10, 90, 100, 110), unreadable={"x": "empty"}, constant=("y",) * 20)
    assert "ssl_jax.data.split" in advice(train, topic="groups")[0].says
    assert not advice(train, split(10, name="test"), topic="groups")
    assert not advice(train, topic="unreadable")[0].warning  # one of a thousand
    assert advice(split(10, unreadable={"x": "empty"}), topic="unreadable")[0].warning
    assert advice(train, topic="blank")[0].warning


def test_every_flag_is_a_key_and_the_config_can_be_run():
    from ssl_jax.cli.flags import read_flags
    from ssl_jax.training.config_keys import of_sections

    train = split(802, size=(500, 500), kinds=(kind(channels=1),), labels=Labels((("a", 9), ("b", 9)), 0))
    config, found = advise([train], (), (), ())
    set_ = [flag for one in found for flag in one.flags]
    read = read_flags(["--config", config, *set_], program="test", sections=of_sections).config
    assert read.data.image_size == read.augment.view.size == (128, 128)
    assert (read.data.channels, read.data.mean, read.batch_size, read.online_knn.k) == (1, (0.4,), 128, 7)
