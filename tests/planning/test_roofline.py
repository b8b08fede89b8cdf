import pytest

from ssl_jax.planning import chips
from ssl_jax.planning.chips import HOP_SECONDS
from ssl_jax.planning.hlo import ArrayShape
from ssl_jax.planning.program import Collective
from ssl_jax.planning.roofline import roofline


@pytest.mark.parametrize(
    "text, count, accelerator, links, hops",
    [
        ("v5e:16x16", 256, "v5litepod-256", 4, 16),  # both axes closed to rings
        ("v5e:4x4", 16, "v5litepod-16", 2, 6),  # open axes: from corner to corner
        ("v6e:8x16", 128, "v6e-128", 3, 7 + 8),
        ("v5p:2x2x4", 16, "v5p-32", 3, 1 + 1 + 3),  # smaller than a cube of 4x4x4: open
        ("v4:4x4x4", 64, "v4-128", 6, 6),
        ("v5p:4x4x8", 128, "v5p-256", 6, 2 + 2 + 4),
        ("v4:12x12x24", 3456, "v4-6912", 6, 6 + 6 + 12),  # longer than the largest, but of fewer cubes
        ("v5p:16x16x24", 6144, "v5p-12288", 6, 8 + 8 + 12),
        ("v5e:1x1", 1, "v5litepod-1", 0, 0),
    ],
)
def test_slices(text, count, accelerator, links, hops):
    place = chips.parse_slice(text)
    assert (place.name, place.chips, place.accelerator_type, place.links, place.hops) == (
        text, count, accelerator, links, hops,
    )  # fmt: skip


@pytest.mark.parametrize(
    "text, group, links, hops",
    [
        ("v5e:16x16", 16, 2, 8),  # a ring along one axis
        ("v5e:4x4", 4, 1, 3),
        ("v5e:4x8", 8, 1, 7),
        ("v5p:4x4x8", 4, 2, 2),
        ("v5e:16x16", 256, 4, 16),
        ("v5e:16x16", 32, 4, 16),  # no line
    ],
)
def test_a_line_of_chips_has_the_links_of_its_axis(text, group, links, hops):
    assert chips.parse_slice(text).reach(group) == (links, hops)


@pytest.mark.parametrize(
    "text, name",
    [
        ("V5E:4x4", "v5e:4x4"),
        (" v5e: 4X4", "v5e:4x4"),
        ("v5litepod-1", "v5e:1x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5litepod-16", "v5e:4x4"),
        ("v5e-128", "v5e:8x16"),
        ("v6e-16", "v6e:4x4"),
        ("v4-8", "v4:2x2x1"),  # two cores a chip
        ("v4-32", "v4:2x2x4"),
        ("V5P-64", "v5p:2x4x4"),
        ("v4-128", "v4:4x4x4"),
        ("v4-4096", "v4:8x16x16"),
    ],
)
def test_slices_by_their_other_names(text, name):
    assert chips.parse_slice(text).name == name


@pytest.mark.parametrize(
    "text, message",
    [
        ("v5:4x4", r"no chip 'v5'.*v4, v5e, v5p, v6e"),
        ("v5e", r"v5e has 2 axes of chips, as in v5e:4x4"),
        ("v5e:4x4x4", "2 axes"),
        ("v4:4x4", r"3 axes of chips, as in v4:4x4x4"),
        ("v5e:0x4", "an axis of 0 chips"),
        ("v5e:-1x4", "2 axes"),
        ("v3-32", "no accelerator 'v3'; there are v4-8, v5litepod-4, v5p-8, v6e-4"),
        ("v4-7", "3.5 chips have no usual shape; give one, v4:4x4x4"),
        ("v5p-12288", "6144 chips have no usual shape"),
        ("v6e-0", "0 chips have no usual shape"),
        ("v6e-512", "the largest slice of v6e is v6e:16x16"),
        ("v5e:4xfour", "2 axes"),
        ("v5e:32x32", "the largest slice of v5e is v5e:16x16"),
        ("v6e:1x32", "the largest slice of v6e is v6e:16x16"),
        ("v4:16x16x20", "the largest slice of v4 is v4:16x16x16"),
        ("v5p:16x20x28", "the largest slice of v5p is v5p:16x16x24"),
    ],
)
def test_slices_that_there_are_not_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        chips.parse_slice(text)


def collective(kind, size, *, times=1, conditional=False, group=256):
    return Collective(kind, (ArrayShape("f32", (size // 4,)),), group, times, conditional, "", ())


def test_each_resource_takes_its_own_time():
    place = chips.parse_slice("v5e:16x16")
    found = roofline(
        place,
        flops={"bf16": 197e12 * 0.02},
        memory_bytes=819e9 * 0.03,
        collectives=[
            collective("all-gather", 512 * 10**6, times=2),
            collective("all-reduce", 256 * 10**6),
            collective("all-gather", 10**9, conditional=True),  # now and then, not of the step
        ],
    )
    link_bytes = 255 / 256 * (2 * 512e6 + 2 * 256e6) / 4
    assert found.link_bytes == pytest.approx(link_bytes)
    assert found.links == pytest.approx(link_bytes / 50e9 + 16 * 4 * HOP_SECONDS)
    assert (found.compute, found.memory) == (pytest.approx(0.02), pytest.approx(0.03))
    assert (found.bound, found.fastest) == ("memory", found.memory)
    assert found.slowest == found.memory + found.links
    assert found.utilization(found.fastest) == pytest.approx(2 / 3)


def test_one_chip_has_no_links_and_spends_no_time_on_them():
    found = roofline(
        chips.parse_slice("v5e:1x1"),
        flops={"bf16": 1.0},
        memory_bytes=1.0,
        collectives=[collective("all-reduce", 400, group=1)],
    )
    assert (found.links, found.link_bytes) == (0.0, 0.0)


def test_small_collectives_cost_hops_not_bytes():
    place = chips.parse_slice("v5e:16x16")
    found = roofline(place, flops={}, memory_bytes=0.0, collectives=[collective("all-reduce", 64, times=100)])
    assert found.links == pytest.approx(100 * 2 * 16 * HOP_SECONDS, rel=1e-3)


def test_a_step_around_the_ring_takes_one_link_and_one_hop():
    permute = collective("collective-permute", 4 * 10**6, times=255)
    found = roofline(chips.parse_slice("v5e:16x16"), flops={}, memory_bytes=0.0, collectives=[permute])
    assert found.link_bytes == pytest.approx(255 * 4e6)
    assert found.links == pytest.approx(255 * (4e6 / 50e9 + HOP_SECONDS))
