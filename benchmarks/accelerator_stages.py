"""The stages of benchmarks/accelerator.py: python benchmarks/accelerator_stages.py STAGE --folder DIR [--tiny]

Each is a function (tiny, folder) -> what it measured, for JSON. "well" says whether it is as it should be. A stage that
measures several things prints what it has after each, so that a time limit loses only the rest.
"""

import argparse
import functools
import gc
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import ssl_jax
from ssl_jax import compiled, data, dist
from ssl_jax import config as configs
from ssl_jax.keys import OneOf, keys_of
from ssl_jax.models import MODELS
from ssl_jax.planning import chips, gpus, hlo, plan
from ssl_jax.training import build
from ssl_jax.workdir.metrics import read_metrics

ROOT = Path(__file__).parents[1]
STORED = Path(__file__).with_name("accelerator_losses.json")
Found = dict[str, Any]
LOSSES, LOSS_STEPS = ("simclr", "byol", "mae"), 20
# Relative to the stored loss. Sums in another order change a float32 loss by 1e-6 at first; twenty steps amplify it.
TOLERANCE = 2e-2
QUICK_TESTS, TEST_SECONDS = ("tests/losses", "tests/test_optim.py"), 60.0
TPU_KINDS = {"TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e"}
MEASURE_SECONDS = 6.0


# --- the stages


def platform(tiny: bool, folder: Path) -> Found:
    """What JAX computes on, its memory, and the rates of a large product and of a copy."""
    device = jax.devices()[0]
    side, count = (256, 2**18) if tiny else (8192, 2**28)
    matrix, long = jnp.ones((side, side), jnp.bfloat16), jnp.ones(count, jnp.float32)
    product = seconds_of(jax.jit(lambda x: x @ x), matrix)
    copy = seconds_of(jax.jit(lambda x: x + 1), long)
    peak = peak_flops(device)
    return {
        "well": True,
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "jax": jax.__version__,
        "memory": (device.memory_stats() or {}).get("bytes_limit"),
        "product_tflops": 2 * side**3 / product / 1e12,
        "share_of_peak": 2 * side**3 / product / peak["bf16"] if peak else None,
        "copy_gb_per_second": 2 * 4 * count / copy / 1e9,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def tests(tiny: bool, folder: Path) -> Found:
    """The quick tests of numbers, in float32 at full precision. Those that need several devices are skipped."""
    given = {
        "SSL_JAX_TEST_PLATFORM": jax.default_backend().replace("gpu", "cuda"),
        "SSL_JAX_TEST_DEVICES": "1",
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    chosen = ["tests/losses/test_decorrelation.py", "-n", "0"] if tiny else [*QUICK_TESTS, "-n", "4"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    running = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **given}, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = running.communicate(timeout=None if tiny else TEST_SECONDS)
        finished = True
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT)  # it still prints its counts
        output, _ = running.communicate()
        finished = False
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", output)}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return {
        "well": bool(counts.get("passed")) and not failed,
        "finished": finished,
        **counts,
        "which_failed": failed[:20],
    }


def losses(tiny: bool, folder: Path) -> Found:
    """The first losses in float32 beside those of a CPU, which `--record` has stored."""
    jax.config.update("jax_default_matmul_precision", "highest")
    found, stored = {}, json.loads(STORED.read_text()) if STORED.exists() else {}
    recording = bool(os.environ.get("RECORD"))
    result: Found = {"well": True, "largest_difference": {}}
    for name in LOSSES[:1] if tiny else LOSSES:
        found[name] = first_losses(name, folder / name)
        if not recording:
            here, there = np.asarray(found[name]), np.asarray(stored[name])
            worst = float(np.max(np.abs(here - there) / np.abs(there)))
            result["largest_difference"][name] = worst
            result["well"] &= worst <= TOLERANCE
        show(result)
    if recording:
        STORED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        result |= {"losses": found}
    return result


def simclr(tiny: bool, folder: Path) -> Found:
    """SimCLR with ResNet-50 in bfloat16, at the largest of several batches that fits."""
    config = ssl_jax.get_config("simclr:tiny" if tiny else "simclr:imagenet_r50")
    config.compute_dtype = "bfloat16"
    found: Found = {"well": False}
    for batch_size in (8,) if tiny else (512, 256, 128, 64):
        config.batch_size = batch_size
        found = measured_or_full(config)
        if found["well"]:
            break
    return found


def vit(tiny: bool, folder: Path) -> Found:
    """ViT-B and ViT-L under MoCo v3 in bfloat16, with each attention and remat that the model has."""
    rows: list[Found] = []
    for name, batch_size in (("base", 128), ("large", 64)):
        config = ssl_jax.get_config("moco_v3:tiny" if tiny else "moco_v3:imagenet_vits16")
        config.unlock()
        if tiny:
            size = dict(dim=48, depth=1, heads=3, mlp_ratio=2.0, patch_size=7, image_size=28)
            config.model = dict(name="vit_tiny_patch16_224", **size)
        config.compute_dtype, config.batch_size = "bfloat16", 8 if tiny else batch_size
        if not tiny:
            config.model.name = f"vit_{name}_patch16_224"
            config.model.pop("heads", None)
        for options in of_keys(config.model.name, ("attention", "remat")):
            config.model.update(options)
            row = measured_or_full(config, seconds=MEASURE_SECONDS / 2)
            rows.append({"model": config.model.name, **options, **row})
            show({"well": True, "rows": rows})
        if tiny:
            break
    skipped = [key for key in ("attention", "remat") if key not in keys_of(MODELS[rows[0]["model"]])]
    return {"well": all(row["well"] or row.get("memory_full") for row in rows), "rows": rows, "skipped": skipped}


def host_input(tiny: bool, folder: Path) -> Found:
    """Images/s that the host decodes and crops, with 1, 4, 8 and 16 threads."""
    source = data.folder(jpegs(folder / "images", tiny))
    size = (32, 32) if tiny else (224, 224)
    found = data.measure_input(
        source,
        image_size=size,
        threads=(1, 2) if tiny else (1, 4, 8, 16),
        seconds=1.0 if tiny else 30.0,
        memory_bytes=0,
    )
    speeds = {made.threads: round(made.images_per_second, 1) for made in found.batches}
    return {"well": True, "cores": found.cores, "images_per_second": speeds, "limit": found.limit}


def end_to_end(tiny: bool, folder: Path) -> Found:
    """A run from JPEG files: images/s, and the share of the time that it waits for them."""
    config = ssl_jax.get_config("simclr:folder" if tiny else "simclr:imagenet_r50")
    config.unlock()
    config.data.update(name="folder", path=str(jpegs(folder / "images", tiny)), memory_bytes=0)
    config.update(steps=8 if tiny else 60, log_every=2 if tiny else 10, evaluate_every=0, compute_dtype="bfloat16")
    config.batch_size = 8 if tiny else 256
    if tiny:
        config.model = dict(name="resnet8")
        config.data.image_size, config.augment.view.size = (32, 32), (32, 32)
    ssl_jax.pretrain(config, workdir=folder / "run")
    speeds = [line for line in read_metrics(folder / "run" / "metrics.jsonl") if "images_per_second" in line][1:]
    return {
        "well": bool(speeds),
        "images_per_second": float(np.median([line["images_per_second"] for line in speeds])),
        "share_of_waiting": float(np.median([line["data_wait"] for line in speeds])),
        "peak_memory": peak_memory(),
    }


def profile(tiny: bool, folder: Path) -> Found:
    """A trace of three steps, and the operations that take most of the device's time."""
    config = ssl_jax.get_config("simclr:tiny" if tiny else "simclr:imagenet_r50")
    config.batch_size, config.compute_dtype = 8 if tiny else 128, "bfloat16"
    step, state, batch, _ = compiled_step(config)
    for _ in range(2):
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    with jax.profiler.trace(str(folder)):
        for _ in range(3):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
    traces = list(folder.glob("plugins/profile/*/*.xplane.pb"))
    times = device_times(traces[0]) if traces else {}
    longest = dict(sorted(times.items(), key=lambda item: -item[1])[:10])
    return {
        "well": bool(traces),
        "bytes": sum(path.stat().st_size for path in traces),
        "busy_ms": sum(times.values()),
        "longest_ms": longest,
    }


def resume(tiny: bool, folder: Path) -> Found:
    """A run that SIGTERM stops and that goes on ends with the bytes of the unbroken one."""
    images = jpegs(folder / "images", tiny=True)
    settings = {
        "data.path": images,
        "data.image_size": "(32,32)",
        "augment.view.size": "(32,32)",
        "model.name": "resnet8",
        "batch_size": 16,
        "steps": 60 if tiny else 400,
        "log_every": 1,
        "evaluate_every": 0,
        "checkpoint_every": 1000,
    }
    command = [sys.executable, "-m", "ssl_jax", "train", "--config", "simclr:folder"]
    command += [f"--config.{key}={value}" for key, value in settings.items()]
    # Otherwise sums may be in another order at each run.
    flags = "--xla_gpu_deterministic_ops=true " if jax.default_backend() == "gpu" else ""
    given = {
        **os.environ,
        "XLA_FLAGS": flags + os.environ.get("XLA_FLAGS", ""),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    start = functools.partial(
        subprocess.Popen, cwd=ROOT, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    broken, unbroken = folder / "broken", folder / "unbroken"
    first = start([*command, "--workdir", str(broken)])
    assert first.stdout is not None
    for line in first.stdout:
        if re.match(r"step +20/", line):
            first.send_signal(signal.SIGTERM)
    stopped = first.wait() == 0 and not (broken / "backbone.safetensors").exists()
    said = [start([*command, "--workdir", str(place)]).communicate()[0] for place in (broken, unbroken)]
    if not all((place / "backbone.safetensors").exists() for place in (broken, unbroken)):
        return {"well": False, "stopped": stopped, "output": [text.splitlines()[-5:] for text in said]}
    goes_on = re.search(r"steps (\d+) to", said[0])
    same = [
        (broken / name).read_bytes() == (unbroken / name).read_bytes()
        for name in ("backbone.safetensors", "backbone.json")
    ]
    return {
        "well": stopped and all(same),
        "stopped": stopped,
        "went_on_from": int(goes_on[1]) if goes_on else None,
        "same_bytes": all(same),
    }


# --- what they share


def peak_flops(device: Any) -> dict[str, float] | None:
    """FLOPs a second of the device by type of the operands; None if it is not in planning/."""
    if name := TPU_KINDS.get(device.device_kind):
        return {"bf16": chips.CHIPS[name].flops}
    known = {gpu.title: gpu for gpu in gpus.GPUS.values()}
    return dict(known[device.device_kind].flops) if device.device_kind in known else None


def arithmetic_seconds(flops: dict[str, float], peak: dict[str, float]) -> float:
    return sum(count / peak.get(kind, peak["bf16"]) for kind, count in flops.items())


def seconds_of(function: Callable[..., Any], *arguments: Any, rounds: int = 5) -> float:
    """The least of several calls."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begun)
    return min(times)


def compiled_step(config: ConfigDict) -> tuple[Any, Any, Any, dict[str, float]]:
    """(compiled step, state, batch of zeros, FLOPs by type) on the first device."""
    parsed = configs.parse(config)
    schedule = build.schedule(parsed, 1_281_167, 1000)
    training = build.training(parsed, schedule)
    mesh = dist.make_mesh(jax.devices()[:1])
    state = dist.create_state(training.create_state, mesh)
    batch = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), plan.batch_shapes(parsed, training, schedule.num_images))
    batch = dist.shard_batch(batch, mesh)
    step = dist.compile_step(training.step, mesh, state, batch)
    text = step.as_text()
    assert text is not None
    return step, state, batch, plan.flops_by_type(step, hlo.parse(text))


def measured_or_full(config: ConfigDict, seconds: float = MEASURE_SECONDS) -> Found:
    """`measure_step`; a note if the device's memory does not suffice."""
    try:
        return measure_step(config, seconds)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        return {"well": False, "batch_size": config.batch_size, "memory_full": True}
    finally:
        gc.collect()  # the state's buffers


def measure_step(config: ConfigDict, seconds: float) -> Found:
    """Times of steps on the first device, for about so many seconds, without the input."""
    begun = time.perf_counter()
    step, state, batch, flops = compiled_step(config)
    compiling = time.perf_counter() - begun
    state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    count, begun = 0, time.perf_counter()
    while count < 3 or time.perf_counter() - begun < seconds:
        state, metrics = step(state, batch)
        count += 1
        if count % 3 == 0:
            jax.block_until_ready(metrics)
    jax.block_until_ready(metrics)
    each = (time.perf_counter() - begun) / count
    peak = peak_flops(jax.devices()[0])
    memory = step.memory_analysis()
    return {
        "well": bool(np.isfinite(metrics["loss"])),
        "batch_size": config.batch_size,
        "step_ms": 1e3 * each,
        "images_per_second": config.batch_size / each,
        "share_of_peak": arithmetic_seconds(flops, peak) / each if peak else None,
        "gflops": sum(flops.values()) / 1e9,
        "program_memory": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "peak_memory": peak_memory(),
        "compile_seconds": compiling,
    }


def peak_memory() -> int | None:
    """Bytes of the first device, since the process began."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def of_keys(model: str, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Each combination of the choices of the model's options of these names; of those that it has."""
    known = keys_of(MODELS[model])
    choices = {name: choices_of(known[name]) for name in names if name in known}
    for values in itertools.product(*choices.values()):
        yield dict(zip(choices, values, strict=True))


def choices_of(key: Any) -> tuple[Any, ...]:
    listed = [limit.choices for limit in key.limits if isinstance(limit, OneOf)]
    return tuple(listed[0]) if listed else (False, True) if isinstance(key.default, bool) else (key.default,)


def first_losses(name: str, workdir: Path) -> list[float]:
    """Of a tiny run on images that are the same everywhere."""
    config = ssl_jax.get_config(f"{name}:tiny")
    config.unlock()
    config.update(batch_size=32, steps=LOSS_STEPS, log_every=1, evaluate_every=0)
    smooth = np.random.default_rng(0).normal(size=(256, 7, 7))
    images = np.stack([cv2.resize(one, (28, 28), interpolation=cv2.INTER_LINEAR) for one in smooth])
    images = np.clip(128 + 60 * images, 0, 255).astype(np.uint8)[..., None]
    logged: list[float] = []
    ssl_jax.pretrain(config, images, workdir=workdir, on_metrics=lambda _, metrics: logged.append(metrics["loss"]))
    return logged


def jpegs(folder: Path, tiny: bool) -> Path:
    """A folder of JPEG files of smooth noise, which compress as photos do."""
    folder.mkdir()
    height, width, count = (48, 64, 48) if tiny else (375, 500, 1024)
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{index}.jpg"), noisy)
    return folder


def device_times(trace: Path) -> dict[str, float]:
    """Milliseconds of the device by operation; {} where the trace has no device, as of a CPU."""
    times: dict[str, float] = {}
    for plane in jax.profiler.ProfileData.from_file(str(trace)).planes:
        if not plane.name.startswith("/device:"):
            continue
        for line in plane.lines:
            if "Stream" in line.name or line.name == "XLA Ops":
                for event in line.events:
                    name = re.sub(r"[.\d]+$", "", event.name)
                    times[name] = times.get(name, 0.0) + event.duration_ns / 1e6
    return times


def show(found: Found) -> None:
    print(json.dumps(found, default=float), flush=True)


STAGES: dict[str, Callable[[bool, Path], Found]] = {
    "platform": platform,
    "tests": tests,
    "losses": losses,
    "simclr": simclr,
    "vit": vit,
    "input": host_input,
    "end_to_end": end_to_end,
    "profile": profile,
    "resume": resume,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    compiled.keep()
    show(STAGES[arguments.stage](arguments.tiny, arguments.folder))


if __name__ == "__main__":
    main()
