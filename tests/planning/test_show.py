import pytest

from ssl_jax.planning.show import number, print_plan, size


@pytest.mark.parametrize(
    "count, text",
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1023, "0.999 KiB"),
        (1023.9 * 1024, "1 MiB"),
        (1.5 * 2**20, "1.5 MiB"),
        (1020 * 2**20, "1.00 GiB"),
        (2.5 * 2**40, "2560.00 GiB"),
    ],
)
def test_sizes_have_no_exponent(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, "0"),
        (0.0000123456, "0.0000123"),
        (0.00526, "0.00526"),
        (8.149, "8.15"),
        (14.349, "14.3"),
        (1234.5, "1,234"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_what_is_printed_says_of_what_it_is(capsys):
    """Of a device and a step, of hidden collectives and not, of images of all hosts and of a chip."""
    both = {"fastest": 0.004, "slowest": 0.005}
    memory = {"limit": 2**34, "needed": 2**30, "temporaries": 2**30}
    result = {
        "method": "simclr", "model": "resnet8", "compute_dtype": "float32", "topology": "v5e:4x4", "devices": 16,
        "accelerator_type": "v5litepod-16", "batch_size": 256, "steps": 10, "fits": True, "compile_seconds": 1.0,
        "memory": memory, "flops": 5.12e8, "memory_traffic": 2**20, "warnings": [], "collectives": [], "advice": [],
        "assumptions": ["so"], "changes": {"batch_size": 256}, "images_fewer": 2560,
        "estimate": {
            "compute_seconds": 1e-6, "memory_seconds": 2e-6, "link_seconds": 0.004, "link_bytes": 1024,
            "bound": "links", "step_seconds": both, "utilization": both, "hours": both, "chip_hours": both,
            "images_per_second": 64000.0, "images_per_second_each_chip": 4000.0,
        },
    }  # fmt: skip
    print_plan(result)
    printed = capsys.readouterr().out
    for line in (
        "activations and other temporaries",
        "each step on each device: 0.512 GFLOP, 1 MiB of memory traffic",
        "at least, with all collectives hidden behind the arithmetic / with none hidden:",
        "a step: 4.00 / 5.00 ms, bound by links (arithmetic 0.00100, memory 0.00200, links 4.00 ms; 1 KiB over each",
        "at most 0.400 / 0.500 % of the peak arithmetic",
        "10 steps: 0.00400 / 0.00500 hours, 0.00400 / 0.00500 chip-hours on v5litepod-16",
        "64,000 images a second from all hosts together, 4,000 for each chip",
    ):
        assert line in printed
    assert printed.endswith(
        "this is the plan with --config.batch_size=256\nits 10 steps see 2,560 images fewer than those of the config\n"
    )
