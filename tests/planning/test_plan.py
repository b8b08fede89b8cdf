import importlib.util
import json
import runpy
import subprocess
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from ssl_jax import config as configs
from ssl_jax.cli import plan as plan_command
from ssl_jax.data import pipeline
from ssl_jax.data.sources import Source
from ssl_jax.planning import chips, hlo, plan, program
from ssl_jax.planning.remedies import remedies, spelled
from ssl_jax.planning.show import print_plan
from ssl_jax.training import build
from tests.flags import environment

ROOT = Path(__file__).parents[2]
WITHOUT_FLAGS = environment(XLA_FLAGS="")  # of which the compiler for TPUs refuses some
SIMCLR = "simclr"


class Images(Source):
    """A source of noise images of two classes."""

    name, class_names, labels = "noise", ("a", "b"), None

    def __len__(self):
        return 40

    def read(self, index):
        return np.random.default_rng(index).integers(0, 256, (30, 30, 1), np.uint8), index % 2


@pytest.mark.parametrize("memory_bytes", [0, 2**31])
def test_the_batch_planned_for_is_the_pipeline_s(memory_bytes):
    config = configs.get_config(f"{SIMCLR}:tiny")
    config.batch_size = 8
    config.data.memory_bytes = memory_bytes
    config = configs.parse(config)
    training = build.training(config, build.schedule(config, 40, 2))
    made = next(
        pipeline.train_batches(
            Images(),
            seed=0,
            batch_size=8,
            image_size=config.data.image_size,
            crops=[augmentation.crop for augmentation in training.augmentations],
            memory_bytes=memory_bytes,
            threads=1,
        )
    )
    planned = plan.batch_shapes(config, training, 40)
    of = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)  # noqa: E731
    assert of(planned) == of(made)


def test_a_plan_for_the_devices_at_hand(tmp_path, capsys, monkeypatch):
    path = tmp_path / "plan.json"
    monkeypatch.setattr(plan.program, "warnings", lambda module: ["loops: 3"])
    plan_command.main([f"--config={SIMCLR}:tiny", "--config.batch_size=64", f"--json={path}"])
    result, printed = json.loads(path.read_text()), capsys.readouterr().out
    memory = result["memory"]
    # float32, and AdamW's two averages of each with two counts.
    config = configs.get_config(f"{SIMCLR}:tiny")
    state = jax.eval_shape(
        build.training(configs.parse(config), build.schedule(configs.parse(config), 60_000, 10)).create_state
    )
    parameters = sum(p.size for p in jax.tree.leaves(state.params))
    assert memory["parameters"] == 4 * parameters
    assert 8 * parameters <= memory["optimizer"] <= 8 * parameters + 8
    assert memory["batch"] == 8 * (28 * 28 + 4 + 4)
    parts = ("arguments", "new_outputs", "activations", "temporaries", "program")
    assert memory["needed"] == sum(memory[name] for name in parts)
    labels = 8 * 4  # which SimCLR does not use
    state_and_batch = sum(memory[name] for name in ("parameters", "optimizer", "method_state", "batch")) - labels
    assert state_and_batch <= memory["arguments"] <= state_and_batch + 64  # step numbers and the random key
    assert result["devices"] == 8 and result["fits"] is None and "estimate" not in result
    assert result["steps"] == 3200 and result["flops"] > 1e6
    gathered = [e for e in result["collectives"] if e["kind"] == "all-gather" and e["each_step"]]
    embeddings = 2 * 64 * 64 * 4  # two views of 64 embeddings of 64 float32
    statistics = 8 * plan.tree_bytes(state.model_state["batch_stats"])  # BatchNorm's, of each device
    assert sum(e["bytes"] for e in gathered) == embeddings + statistics
    assert gathered[0]["line"].startswith("ops/collectives.py")
    assert result["warnings"] == ["loops: 3"] and "counted too low: loops: 3" in printed
    assert "memory of the devices is not known" in printed and "GFLOP" in printed and "all-gather" in printed


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="compiles for TPUs; pip install libtpu")
def test_a_plan_for_a_slice_that_is_not_there(tmp_path):
    path = tmp_path / "plan.json"
    flags = [f"--config={SIMCLR}:tiny", "--topology=v5e:2x2", f"--json={path}"]
    command = [sys.executable, "-m", "ssl_jax", "plan", *flags]
    printed = subprocess.run(command, env=WITHOUT_FLAGS, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    result = json.loads(path.read_text())
    assert (
        result["fits"] is True
        and result["devices"] == 4
        and "fits: " in printed
        and "chip-hours on v5litepod-4" in printed
    )
    assert result["memory"]["limit"] == 15.75 * 2**30
    reduced = sum(e["bytes"] for e in result["collectives"] if e["kind"] == "all-reduce" and e["each_step"])
    # The gradient once; what is left are statistics and the gradient of the gathered embeddings.
    assert result["memory"]["parameters"] <= reduced < 1.5 * result["memory"]["parameters"]
    found = result["estimate"]
    assert 0 < found["step_seconds"]["fastest"] < found["step_seconds"]["slowest"] < 0.1


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="asks the TPU compiler; pip install libtpu")
def test_a_chip_is_one_device_also_where_it_has_two_cores():
    code = "from ssl_jax.planning import chips, plan\nfor place in ('v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'):\n"
    code += "    print(len(plan.describe(chips.parse_slice(place))))"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=WITHOUT_FLAGS, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["4"] * 4


def test_devices_that_are_not_chips_are_refused(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(plan.os, "environ", {})
    monkeypatch.setattr(plan.dist, "described_devices", lambda *_: ["core"] * 8)
    with pytest.raises(SystemExit, match="v4:2x2x1: libtpu describes 8 devices, but the slice has 4 chips"):
        plan_command.main([f"--config={SIMCLR}:tiny", "--topology=v4:2x2x1"])


def test_a_slice_that_the_compiler_cannot_divide_among_hosts_is_refused_in_a_sentence(monkeypatch):
    def described_devices(*_):
        raise jax.errors.JaxRuntimeError('INVALID_ARGUMENT: "v5e:3x3" is not divisible by ... bounds "2x2x1"')

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(plan.os, "environ", {})
    monkeypatch.setattr(plan.dist, "described_devices", described_devices)
    with pytest.raises(SystemExit, match="v5e:3x3: there is no such slice; a host has 2x2 chips"):
        plan_command.main([f"--config={SIMCLR}:tiny", "--topology=v5e:3x3"])


@pytest.mark.parametrize("where", ["nowhere/p.json", "a file/p.json", "directory"])
def test_a_place_that_cannot_be_written_to_is_refused_before_compiling(tmp_path, monkeypatch, where):
    monkeypatch.setattr(plan_command, "plan", lambda *_: pytest.fail("compiled"))
    (tmp_path / "directory").mkdir()
    (tmp_path / "a file").touch()
    with pytest.raises(SystemExit, match=f"--json={tmp_path / where}: "):
        plan_command.main([f"--config={SIMCLR}:tiny", f"--json={tmp_path / where}"])


def test_without_the_compiler_for_tpus_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install \"jax\[tpu\]=="):
        plan_command.main([f"--config={SIMCLR}:tiny", "--topology=v5e:4x4"])


def test_a_program_of_another_version_s_compiler_is_told_of(monkeypatch):
    def unreadable(_):
        raise jax.errors.JaxRuntimeError("INTERNAL: an instruction should have 1 operands but sees 3\nmore")

    compiled = jax.jit(lambda x: x).lower(1.0).compile()
    monkeypatch.setattr(type(compiled), "as_text", unreadable)
    with pytest.raises(configs.ConfigError, match=r"cannot read what libtpu .*\"jax\[tpu\]==.*sees 3$"):
        plan.program_text(compiled)


def test_a_topology_that_there_is_not_is_refused():
    with pytest.raises(SystemExit, match=r"--topology: topology 'v7:4x4': no chip 'v7'"):
        plan_command.main([f"--config={SIMCLR}:tiny", "--topology=v7:4x4"])


# libtpu 0.0.52, for NT-Xent's matrix at batch 131,072 on v5e:4x4.
TOO_LITTLE = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (16.83G) exceeds available HBM (15.75G). HLO module: jit_train_step."
)


def refuse(message):
    def compile_step(*_, **__):
        raise jax.errors.JaxRuntimeError(message)

    return compile_step


def test_what_the_compiler_says_of_too_little_memory_is_all_that_is_needed(monkeypatch, capsys):
    """What it calls temporaries has the step's arguments in it: state and batch."""
    monkeypatch.setattr(plan, "describe", lambda place: jax.devices())
    monkeypatch.setattr(plan.dist, "compile_step", refuse(TOO_LITTLE))
    plan_command.main([f"--config={SIMCLR}:tiny", "--topology=v5e:2x4"])
    assert "DOES NOT FIT: 16.83 GiB of 15.75 GiB" in capsys.readouterr().out
    memory = plan.plan(configs.get_config(f"{SIMCLR}:tiny"), chips.parse_slice("v5e:2x4"))["memory"]
    assert memory["needed"] == int(16.83 * 2**30) and memory["limit"] == 15.75 * 2**30
    arguments = ("parameters", "optimizer", "method_state", "batch")
    assert memory["temporaries"] == memory["needed"] - sum(memory[name] for name in arguments)
    assert plan.memory_needed(TOO_LITTLE.replace("16.83G", "2.93T")) == int(2.93 * 2**40)


def test_other_errors_of_the_compiler_are_left_as_they_are(monkeypatch):
    monkeypatch.setattr(plan.dist, "compile_step", refuse("INVALID_ARGUMENT: something else"))
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plan.plan(configs.get_config(f"{SIMCLR}:tiny"), None)


def not_fitting(**changes):
    """4096 images on 16 chips, of which each would need 1 GiB of state and 30 GiB of temporaries, and has 16."""
    memory = {"limit": 16 * 2**30, "needed": 31 * 2**30, "parameters": 2**29, "optimizer": 2**28, "method_state": 2**28}
    result = {"memory": memory, "devices": 16, "batch_size": 4096, "compute_dtype": "bfloat16"}
    return result | {"shard_state": True, "remat": "full"} | changes


def test_advice_for_what_does_not_fit():
    place = chips.parse_slice("v5e:4x4")
    # 15 GiB are left of 30: half the images, or twice the chips.
    assert plan.advice(not_fitting(), place) == [
        "--config.batch_size=2048, if activations shrink with the batch",
        "32 chips or more of v5e, for the same batch",
    ]
    # 512 chips there are not of a v5e.
    assert plan.advice(not_fitting(devices=256, batch_size=65536), chips.parse_slice("v5e:16x16")) == [
        "--config.batch_size=32768, if activations shrink with the batch"
    ]
    assert "bfloat16" in plan.advice(not_fitting(compute_dtype="float32"), place)[0]
    one_image = not_fitting(batch_size=16)
    assert plan.advice(one_image, place) == [
        "one image on a device does not fit: use a smaller model or image, or a chip with more memory"
    ]
    assert "shard_state=True" in plan.advice(not_fitting(shard_state=False), place)[0]
    assert [line[:25] for line in plan.advice(not_fitting(remat="dots"), place)[:2]] == [
        "--config.model.remat=bloc",
        "--config.model.remat=full",
    ]
    assert plan.advice(not_fitting(remat=None), place) == plan.advice(not_fitting(), place)
    too_large = not_fitting()
    too_large["memory"]["optimizer"] = 17 * 2**30
    (only,) = plan.advice(too_large, place)
    assert "the state alone takes 17.75 GiB" in only


def test_collectives_are_summed_by_kind_and_line():
    shape = (hlo.ArrayShape("f32", (1000,)),)
    one = program.Collective("all-gather", shape, 4, 3, False, "jit/x", ("a.py:1 f", "b.py:2 g", "c.py:3 h"))
    rare = program.Collective("all-gather", shape, 4, 1, True, "jit/x", ("a.py:1 f", "b.py:2 g"))
    nameless = program.Collective("all-reduce", shape, 4, 1, False, "", ())
    assert plan.group_collectives([one, nameless, rare, one]) == [
        {"kind": "all-gather", "line": "a.py:1 f < b.py:2 g", "each_step": True, "calls": 6, "bytes": 24000,
         "sent": 18000.0},
        {"kind": "all-reduce", "line": "(the compiler's)", "each_step": True, "calls": 1, "bytes": 4000,
         "sent": 6000.0},
        {"kind": "all-gather", "line": "a.py:1 f < b.py:2 g", "each_step": False, "calls": 1, "bytes": 4000,
         "sent": 3000.0},
    ]  # fmt: skip


def test_an_estimate_and_its_price():
    place = chips.parse_slice("v5e:1x1")
    result = {"flops_by_type": {"bf16": 197e12 * 0.5}, "memory_traffic": 819e9 * 0.25, "batch_size": 64}
    found = plan.estimate(place, 7200, result, [])
    assert found["bound"] == "compute"
    for name in ("fastest", "slowest"):
        assert found["step_seconds"][name] == pytest.approx(0.5)
        assert found["utilization"][name] == pytest.approx(1.0)
        assert found["hours"][name] == found["chip_hours"][name] == pytest.approx(1.0)
    assert found["images_per_second"] == found["images_per_second_each_chip"] == pytest.approx(128.0)


def test_activations_are_no_more_than_all_temporaries():
    analysis = types.SimpleNamespace(
        temp_size_in_bytes=100,
        argument_size_in_bytes=50,
        output_size_in_bytes=52,
        alias_size_in_bytes=50,
        generated_code_size_in_bytes=7,
    )
    expected = {"arguments": 50, "new_outputs": 2, "activations": 60, "temporaries": 40, "program": 7, "needed": 159}
    assert plan.program_memory(analysis, 60) == expected
    assert plan.program_memory(analysis, 1000)["activations"] == 100
    none_told_apart = plan.program_memory(analysis, 0)
    assert "activations" not in none_told_apart and none_told_apart["temporaries"] == 100


def test_remedies_come_in_the_order_of_what_they_cost():
    vit = {"remat": "none", "microbatch": 0}
    settings = {"batch_size": 64, "compute_dtype": "float32", "shard_state": False, "model": vit}
    shard, eighths = {"shard_state": True}, {"model.microbatch": 2}
    remats = [{"model.remat": remat} for remat in ("dots", "block", "full")]
    half = {"compute_dtype": "bfloat16"}
    batches = [{"batch_size": 32}, {"batch_size": 16}, {"batch_size": 8}]
    assert list(remedies(settings, {}, devices=8)) == [shard, *remats, eighths, half, *batches]
    # A microbatch that is kept must divide the images of a device.
    assert list(remedies(settings, eighths, devices=8))[6:] == [*batches[:2], batches[2] | {"model.microbatch": 1}]
    assert spelled(shard | remats[0]) == "--config.shard_state=True --config.model.remat=dots"
    done = {"batch_size": 64, "compute_dtype": "bfloat16", "shard_state": True, "model": vit | {"remat": "full"}}
    assert list(remedies(done, {}, devices=64)) == []
    # Groups of 4 are made of the 2 views of 2 images; of one image they are of 2 at most. No microbatch divides them.
    grouped = done | {"batch_size": 128, "model": vit | {"remat": "full", "drop_path_group": 4}}
    fewer = {"batch_size": 64, "model.drop_path_group": 2}
    assert list(remedies(grouped, {}, devices=64)) == [fewer]
    many = grouped | {"batch_size": 512}  # whole groups of one view, until there are fewer than 4 images
    fewer = [{"batch_size": 256}, *({"batch_size": 64 * n, "model.drop_path_group": g} for n, g in ((2, 2), (1, 0)))]
    assert list(remedies(many, {}, devices=64)) == fewer
    resnet = done | {"shard_state": False, "model": {"remat": "block"}}
    assert list(remedies(resnet, {}, devices=64)) == [shard, remats[-1]]


def test_a_search_ends_with_the_first_that_fits(monkeypatch, capsys):
    """On a chip that has room for the tiny config's state only where each device keeps a part of it."""
    config = configs.get_config(f"{SIMCLR}:tiny").unlock()
    config.update(batch_size=64, model=dict(stages=(1,)), augment=dict(view=dict(jitter=0.0)))
    whole = plan.plan(config, None)
    needed = whole["memory"]["needed"]

    def of_a_small_chip(config, place):
        result = real(config, place) if config.shard_state else whole
        result["memory"]["limit"] = needed - 1
        return result | {"fits": result["memory"]["needed"] < needed}

    real = plan.plan
    monkeypatch.setattr(plan, "plan", of_a_small_chip)
    found = plan.search(config, None)
    assert found["fits"] and found["shard_state"]
    assert [entry["changes"] for entry in found["tried"]] == [{}, {"shard_state": True}]
    assert (found["changes"], found["images_fewer"]) == ({"shard_state": True}, 0)
    assert "tried the config as it is: " in capsys.readouterr().out
    print_plan(found)
    assert capsys.readouterr().out.endswith("this is the plan with --config.shard_state=True\n")
    assert not config.shard_state


@pytest.mark.parametrize(
    "limit, found, tried",
    [
        (14, {"model.remat"}, [set(), {"shard_state"}, {"model.remat"}]),
        (
            5,  # nothing fits: the smallest
            {"model.remat", "compute_dtype"},
            [
                set(),
                {"shard_state"},
                *[{"model.remat"}] * 3,
                {"model.remat", "compute_dtype"},
                {"model.remat", "compute_dtype", "batch_size"},
            ],
        ),
    ],
)
def test_a_search_drops_what_does_not_help(monkeypatch, limit, found, tried):
    """shard_state, by which a step needs more, and a smaller batch, by which it needs no less."""
    config = configs.get_config(f"{SIMCLR}:tiny")
    config.batch_size = 2 * jax.device_count()
    config.compute_dtype = "float32"

    def made_up(config, place):
        changes = {
            "shard_state": config.shard_state,
            "model.remat": config.model.get("remat", "none") != "none",
            "compute_dtype": config.compute_dtype == "bfloat16",
        }
        sizes = {"shard_state": 7, "model.remat": -3, "compute_dtype": -4}
        needed = 16 + sum(sizes[key] for key, changed in changes.items() if changed)
        return {
            "fits": needed <= limit,
            "devices": jax.device_count(),
            "memory": {"needed": needed},
            "changed": {key for key, changed in changes.items() if changed},
        }

    monkeypatch.setattr(plan, "plan", made_up)
    result = plan.search(config, None)
    assert result["changed"] == found
    assert [set(entry["changes"]) for entry in result["tried"]] == tried


@pytest.mark.parametrize("steps, fewer", [(10, 10 * 8), (0, 0)])  # epochs see all images
def test_a_smaller_batch_found_sees_fewer_images_in_as_many_steps(monkeypatch, steps, fewer):
    config = configs.get_config(f"{SIMCLR}:tiny")
    config.batch_size, config.steps, config.epochs = 16, steps, 1

    def made_up(config, place):
        return {"fits": config.batch_size == 8, "devices": 8, "memory": {"needed": config.batch_size}}

    monkeypatch.setattr(plan, "plan", made_up)
    found = plan.search(config, None)
    assert (found["changes"], found["images_fewer"]) == ({"batch_size": 8}, fewer)


def test_a_search_needs_to_know_the_memory(monkeypatch):
    monkeypatch.setattr(plan, "plan", lambda config, place: {"fits": None})  # of devices that do not say
    with pytest.raises(SystemExit, match="give a --topology"):
        plan_command.main([f"--config={SIMCLR}:tiny", "--config.batch_size=64", "--search"])


@pytest.mark.parametrize(
    "flags, made",
    [
        ([], []),
        (["--search"], ["simclr:imagenet_r50"]),  # alone does not fit, and was not searched
        (["--again", "--only", "mae"], ["mae:imagenet_vitl16"]),
    ],
)
def test_of_the_table_s_rows_those_are_made_that_are_asked_for(tmp_path, monkeypatch, flags, made):
    table = runpy.run_path(str(ROOT / "benchmarks" / "plans.py"))
    row = {"fits": False, "memory": {"needed": 2}}
    kept = {
        "mae:imagenet_vitl16 v5e:4x4": {"fits": True},
        "simclr:imagenet_r50 v5e:4x4": row,
        "simclr:imagenet_r50x2 v5e:4x4": row | {"tried": []},
    }
    results = tmp_path / "plans.json"
    results.write_text(json.dumps(kept))
    asked = []
    scope = table["main"].__globals__
    monkeypatch.setitem(scope, "RESULTS", results)
    monkeypatch.setitem(scope, "imagenet_configs", lambda: [key.split()[0] for key in kept])
    monkeypatch.setitem(scope, "write", lambda plans: None)

    def run(command, check):
        asked.append(command[4].removeprefix("--config="))
        return types.SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "argv", ["plans.py", "--topology=v5e:4x4", *flags])
    table["main"]()
    assert asked == made
