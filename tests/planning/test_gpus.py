import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from ssl_jax import config as configs
from ssl_jax.planning import gpus, places, plan
from ssl_jax.planning.chips import Slice
from ssl_jax.planning.hlo import ArrayShape
from ssl_jax.planning.program import Collective
from ssl_jax.planning.roofline import roofline
from tests.flags import environment

ROOT = Path(__file__).parents[2]
H100 = gpus.GPUS["H100"]


@pytest.mark.parametrize(
    "text, name, machines",
    [
        ("8xH100", "8xH100", (1, 8)),
        (" 16 x h100 ", "16xH100", (2, 8)),
        ("h200:4", "4xH200", (1, 4)),
        ("B200", "1xB200", (1, 1)),
        ("8xA100", "8xA100-80", (1, 8)),
        ("2xa100-40", "2xA100-40", (1, 2)),
        ("L4:8", "8xL4", (1, 8)),
        ("2x4090", "2xRTX4090", (1, 2)),
    ],
)
def test_gpus_by_their_names(text, name, machines):
    place = places.parse_place(text)
    assert isinstance(place, gpus.Gpus) and (place.name, place.machines) == (name, machines)


@pytest.mark.parametrize(
    "text, message",
    [
        ("9xH100", r"1 to 8 H100, or a multiple of 8 up to 256, got 9"),
        ("0xH100", "got 0"),
        ("512xB200", "got 512"),
        ("16xL4", "1 to 8 L4, got 16"),
        ("8xH300", "no chip.*; or COUNTxGPU, such as 8xH100, with one of A100-40"),
    ],
)
def test_gpus_that_there_are_not_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        places.parse_place(text)


def test_slices_are_still_slices():
    assert isinstance(places.parse_place("v5e:4x4"), Slice) and isinstance(places.parse_place("v5litepod-8"), Slice)


def all_reduce(count, group):
    return Collective("all-reduce", (ArrayShape("f32", (count // 4,)),), group, 1, False, "", ())


def test_each_type_of_operands_has_its_own_rate():
    seconds = H100.arithmetic_seconds({"bf16": 989e12, "f32": 494e12, "highest": 67e12, "f16": 989e12})
    assert seconds == pytest.approx(4.0)


def test_a_collective_runs_over_nvlink_and_between_machines_over_the_network():
    sent = 2 * 7 / 8 * 4e9
    for place, seconds in (
        (gpus.Gpus(H100, 8), sent / 450e9),
        (gpus.Gpus(H100, 16), 2 * 15 / 16 * 4e9 / 450e9),  # the network takes less
        (gpus.Gpus(H100, 256), 2 * 31 / 32 * 4e9 / 8 / 50e9),  # each adapter sends an eighth of what its machine does
        (gpus.Gpus(gpus.GPUS["L4"], 8), sent / 32e9),
    ):
        found = roofline(place, flops={}, memory_bytes=0.0, collectives=[all_reduce(4 * 10**9, place.chips)])
        assert found.links == pytest.approx(seconds, rel=3e-2), place
    alone = roofline(gpus.Gpus(H100, 1), flops={}, memory_bytes=3350e9, collectives=[all_reduce(400, 1)])
    assert (alone.links, alone.memory) == (0.0, 1.0)


def test_small_collectives_take_the_latency_of_the_ring():
    found = roofline(gpus.Gpus(H100, 8), flops={}, memory_bytes=0.0, collectives=[all_reduce(64, 8)] * 100)
    assert found.links == pytest.approx(100 * 2 * 7 * gpus.LINK_SECONDS, rel=1e-2)


def test_a_program_has_a_share_of_the_memory():
    assert gpus.Gpus(H100, 8).memory == int(0.9 * 81559 * 2**20)


def test_without_the_compiler_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(configs.ConfigError, match=r"needs no GPU and no CUDA: pip install --no-deps jax-cuda12-pjrt=="):
        plan.describe(gpus.Gpus(H100, 8))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jax_cuda12_plugin"), reason="compiles for GPUs; jax-cuda12-plugin")
@pytest.mark.parametrize("name", gpus.GPUS)
def test_each_gpu_is_one_that_the_compiler_knows(tmp_path, name):
    path = tmp_path / "plan.json"
    flags = ["--config=simclr:tiny", "--config.compute_dtype=bfloat16", f"--topology=2x{name}", f"--json={path}"]
    command = [sys.executable, "-m", "ssl_jax", "plan", *flags]
    subprocess.run(command, env=environment(XLA_FLAGS=""), cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(path.read_text())
    assert result["fits"] and result["devices"] == 2 and set(result["flops_by_type"]) >= {"bf16"}
    assert 0 < result["estimate"]["step_seconds"]["fastest"] < 0.1
