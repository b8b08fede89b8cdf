"""What a run needs and costs: ssl_jax plan --config simclr:imagenet_r50 --topology v5e:16x16 (or 8xH100)

Compiles the very step of ssl_jax train for a slice of TPUs or for GPUs. They need not be there, but their compiler
must be installed: libtpu, or JAX's plugin for CUDA. Without --topology, it compiles for the devices at hand. Then it
reads the compiled program: memory, arithmetic, what the collectives move. It runs nothing and reads no image.
"""

import collections
import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import dist
from ssl_jax.config import Config
from ssl_jax.keys import keys_of
from ssl_jax.models import MODELS
from ssl_jax.ops import shards
from ssl_jax.planning import hlo, main_memory, program
from ssl_jax.planning.chips import Slice
from ssl_jax.planning.gpus import Gpus
from ssl_jax.planning.places import Place
from ssl_jax.planning.remedies import WHY, at_same_batch, remedies, spelled
from ssl_jax.planning.roofline import roofline
from ssl_jax.planning.show import STATE, size
from ssl_jax.training import build, reading
from ssl_jax.training.measuring import measured
from ssl_jax.workdir import facts

# (images, classes) of training splits, which are not read for a plan.
DATA_SETS = {
    "imagenet2012": (1_281_167, 1000),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "fashion_mnist": (60_000, 10),
    "emoji_google": (2_663, 9),
    "emoji_twitter": (2_663, 9),
}
# The GPU compiler would try kernels on a GPU; Triton's cannot do without, and for some products of ViTs it finds none.
WITHOUT_GPU = {
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_latency_hiding_scheduler": True,
}
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def plan(given: ConfigDict, place: Place | None) -> dict[str, Any]:
    """What `show.print_plan` prints and --json writes. `place`: None for the devices at hand.

    Bytes and FLOPs are of one device and one step; with config.mix, of one with the largest views, which is the share
    "share_of_steps" of them. "fits" is None if the devices do not say how much memory they have.
    """
    config = configs.parse(measured(given))
    devices = jax.devices() if place is None else describe(place)
    configs.check_devices(config.batch_size, len(devices))
    schedule = build.schedule(config, *count_images(config))
    each = build.training(config, schedule).each
    number = max(range(len(each)), key=lambda number: sum(math.prod(view.size) for view in each[number].augmentations))
    training = each[number]
    state = jax.eval_shape(training.create_state)
    batch = batch_shapes(config, training, schedule.num_images)
    result: dict[str, Any] = {
        "method": config.method["name"],
        "model": config.model["name"],
        "topology": place.name if place else f"{len(devices)} x {devices[0].device_kind}",
        "accelerator_type": place.accelerator_type if place else None,
        "devices": len(devices),
        "batch_size": config.batch_size,
        "compute_dtype": config.compute_dtype,
        "shard_state": config.shard_state,
        "remat": model_settings(config.model).get("remat"),
        "steps": schedule.steps,
        "commit": facts.commit(),
        "versions": {package: facts.version(package) for package in ("jax", "libtpu", "jax-cuda12-plugin")},
    }
    if config.mix:
        result["share_of_steps"] = config.mix["shares"][number]
    held = functools.partial(state_bytes, devices=len(devices), shard_state=config.shard_state)
    memory = {
        "limit": place.memory if place else (devices[0].memory_stats() or {}).get("bytes_limit"),
        "parameters": held(state.params),
        "optimizer": held(state.opt_state),
        "method_state": held(state.model_state),
        "batch": tree_bytes(batch) // len(devices),
    }
    result["memory"] = memory
    begun = time.perf_counter()
    try:
        compiled = dist.compile_step(
            training.step,
            dist.make_mesh(devices),
            state,
            batch,
            shard_state=config.shard_state,
            compiler_options=WITHOUT_GPU if isinstance(place, Gpus) else None,
        )
    except jax.errors.JaxRuntimeError as error:
        if (needed := memory_needed(str(error))) is None:
            raise
        memory |= {"needed": needed, "temporaries": needed - sum(memory[name] for name in (*STATE, "batch"))}
        result |= {"fits": False, "compile_seconds": time.perf_counter() - begun}
        result["advice"] = advice(result, place)
        return result
    result["compile_seconds"] = time.perf_counter() - begun
    module = hlo.parse(program_text(compiled))
    memory |= program_memory(compiled.memory_analysis(), main_memory.activation_bytes(module))
    result["fits"] = None if memory["limit"] is None else memory["needed"] <= memory["limit"]
    flops = flops_by_type(compiled, module)
    result |= {
        "flops": sum(flops.values()),
        "flops_by_type": flops,
        "memory_traffic": main_memory.traffic_bytes(module),
        "warnings": program.warnings(module),
    }
    moved = program.collectives(module)
    result["collectives"] = group_collectives(moved)
    if place:
        result["estimate"] = estimate(place, schedule.steps, result, moved)
        result["assumptions"] = list(place.assumptions)
    result["advice"] = [] if result["fits"] is not False else advice(result, place)
    return result


def search(config: ConfigDict, place: Place | None) -> dict[str, Any]:
    """The plan of the config, or of the config with the first of its `remedies` that make it fit.

    Remedies that do not help are dropped. If nothing fits, it is the plan that needs the least memory. It also has
      "tried": for each plan that was made, its changes, whether it fits and the bytes that it needs;
      "changes": those of the plan found;
      "images_fewer": how many images fewer it sees than the config. A smaller batch leaves the number of steps as it
        is; a config with epochs still sees all images.
    """
    best = plan(config, place)
    if best["fits"] is None:
        raise configs.ConfigError("--search: the devices do not say how much memory they have; give a --topology")
    kept: dict[str, Any] = {}
    tried = [tried_as(kept, best)]
    settings = {**configs.plain(config), "model": model_settings(configs.plain(config.model))}
    for change in remedies(settings, kept, best["devices"]):
        if best["fits"]:
            break
        changed = ConfigDict(configs.plain(config))
        changed.update_from_flattened_dict(kept | change)
        result = plan(changed, place)
        tried.append(tried_as(kept | change, result))
        if result["memory"]["needed"] < best["memory"]["needed"]:
            best = result
            kept |= change
    fewer = config.batch_size - kept.get("batch_size", config.batch_size)
    return best | {"tried": tried, "changes": kept, "images_fewer": config.steps * fewer}


def model_settings(model: configs.Section) -> dict[str, Any]:
    """All options of a config's model: those that it sets, and the defaults of the others."""
    return {name: key.default for name, key in keys_of(MODELS[model["name"]]).items()} | dict(model)


def tried_as(changes: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    entry = {"changes": dict(changes), "fits": result["fits"], "needed": result["memory"]["needed"]}
    print(f"tried {spelled(changes) or 'the config as it is'}: {size(entry['needed'])}", flush=True)
    return entry


def program_text(compiled: jax.stages.Compiled) -> str:
    """The compiled program. Raises: ConfigError if JAX cannot read it, as that of another version's compiler."""
    try:
        text = compiled.as_text()
    except jax.errors.JaxRuntimeError as error:
        raise configs.ConfigError(
            f"JAX {jax.__version__} cannot read what libtpu {facts.version('libtpu')} compiled; install the compiler "
            f'that belongs to it: pip install "jax[tpu]=={jax.__version__}". It says: {str(error).splitlines()[0]}'
        ) from error
    assert text is not None  # as what was compiled here has one
    return text


def flops_by_type(compiled: jax.stages.Compiled, module: hlo.Module) -> dict[str, float]:
    """FLOPs of a step on one device, by type of the operands as in `program.product_flops`.

    Those of XLA's analysis, which counts all arithmetic, as "bf16". The GPU compiler has none (jaxlib 0.10), and
    elsewhere it does not see into the calls of NVIDIA's libraries: there only products and convolutions count.
    """
    costs = compiled.cost_analysis()
    if costs is None or program.has_library_calls(module):
        return program.product_flops(module)
    return {"bf16": costs["flops"] + program.repeated_flops(module)}


def describe(place: Place) -> Any:
    """The devices of a slice, one a chip, or of machines of GPUs. Raises: ConfigError without their compiler, or if it
    does not know them."""
    return describe_gpus(place) if isinstance(place, Gpus) else describe_slice(place)


def describe_gpus(place: Gpus) -> Any:
    plugins = [version for version in (12, 13) if importlib.util.find_spec(f"jax_cuda{version}_plugin")]
    if not plugins:
        packages = " ".join(f"jax-cuda12-{part}=={jax.__version__}" for part in ("pjrt", "plugin"))
        raise configs.ConfigError(
            f"--topology={place.name} needs JAX's GPU compiler, which is not installed; it needs no GPU and no CUDA: "
            f"pip install --no-deps {packages}"
        )
    jax.config.update("jax_platforms", "cpu")  # no other device is looked for
    try:
        return dist.described_gpus(place.chip.name, place.chip.target, *place.machines)
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        raise configs.ConfigError(f"--topology={place.name}: {str(error).splitlines()[0]}") from error


def describe_slice(place: Slice) -> Any:
    if importlib.util.find_spec("libtpu") is None:
        raise configs.ConfigError(
            f'--topology needs the TPU compiler, which is not installed: pip install "jax[tpu]=={jax.__version__}"'
        )
    # Otherwise libtpu would ask a TPU machine's metadata server who it is, and refuse to be loaded twice on a machine.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": place.accelerator_type,
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    jax.config.update("jax_platforms", "cpu")  # no other device is looked for
    try:
        devices = dist.described_devices(place.name, place.chip.cores)
    except jax.errors.JaxRuntimeError as error:
        sentence = str(error).splitlines()[0]
        if "not divisible" in sentence:
            sentence = "there is no such slice; a host has 2x2 chips, and the first two axes are 1 or even"
        raise configs.ConfigError(f"--topology={place.name}: {sentence}") from error
    if len(devices) != place.chips:  # the plan takes each device to have a chip's memory and rates
        raise configs.ConfigError(
            f"--topology={place.name}: libtpu describes {len(devices)} devices, but the slice has "
            f"{place.chips} chips; install another version of libtpu"
        )
    return devices


def count_images(config: Config) -> tuple[int, int]:
    """(images, classes) of the training split: from DATA_SETS if it is there and whole, else from the data."""
    data = config.data
    if data.split == "train" and data.name in DATA_SETS:
        return DATA_SETS[data.name]
    source = reading.source(config)
    return len(source), len(source.class_names)


def batch_shapes(config: Config, training: build.Training, num_images: int) -> dict[str, Any]:
    """Shapes of the global batch that data/pipeline.py's `train_batches` makes."""
    data, rows = config.data, config.batch_size
    index = jax.ShapeDtypeStruct(reading.index_shape(rows, num_images), jnp.int32)
    batch: dict[str, Any] = {"index": index, "label": jax.ShapeDtypeStruct((rows,), jnp.int32)}
    if reading.keeps_in_memory(config, num_images, windows=data.window > 0):
        return batch | {"image": jax.ShapeDtypeStruct((rows, *data.image_size, data.channels), data.dtype)}
    views = training.augmentations
    return batch | {
        "crops": tuple(jax.ShapeDtypeStruct((rows, *view.size, data.channels), data.dtype) for view in views),
        "boxes": tuple(jax.ShapeDtypeStruct((rows, 4), jnp.float32) for _ in views),
    }


def tree_bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def state_bytes(tree: Any, devices: int, *, shard_state: bool) -> int:
    """Bytes that one device holds of a tree of arrays or their shapes."""
    axes = dist.shard_axes(tree, devices if shard_state else 1)
    parts = jax.tree.map(lambda x, axis: tree_bytes(x) // (1 if axis == shards.REPLICATED else devices), tree, axes)
    return sum(jax.tree.leaves(parts))


def program_memory(analysis: Any, activations: int) -> dict[str, int]:
    """Bytes by the compiler's account. Arguments include its padding. The new state takes their place.

    "activations" is left out if none could be told apart from the temporaries: a step with a gradient has some.
    """
    temporary = analysis.temp_size_in_bytes
    activations = min(activations, temporary)
    parts = {
        "arguments": analysis.argument_size_in_bytes,
        "new_outputs": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        **({"activations": activations} if activations else {}),
        "temporaries": temporary - activations,
        "program": analysis.generated_code_size_in_bytes,
    }
    return {**parts, "needed": sum(parts.values())}


def memory_needed(error: str) -> int | None:
    """Bytes that a step needs, from the TPU compiler's message that memory does not suffice; None for other messages.

    They are for the whole step: what the message calls temporaries includes the arguments (libtpu 0.0.52).
    """
    found = re.search(r"([\d.]+)([KMGT])\) exceeds available HBM", error)
    return int(float(found[1]) * UNITS[found[2]]) if found else None


def group_collectives(moved: Iterable[program.Collective]) -> list[dict[str, Any]]:
    """One entry for each kind and line of our code, with the caller of that line. Those that send most come first."""
    groups = collections.defaultdict(lambda: {"calls": 0, "bytes": 0, "sent": 0.0})
    for one in moved:
        line = " < ".join(one.stack[:2]) or one.op_name or "(the compiler's)"
        group = groups[(one.kind, line, one.conditional)]
        group["calls"] += one.times
        group["bytes"] += one.times * one.bytes
        group["sent"] += one.times * one.sent_bytes
    entries = [
        {"kind": kind, "line": line, "each_step": not conditional, **group}
        for (kind, line, conditional), group in groups.items()
    ]
    return sorted(entries, key=lambda entry: -entry["sent"])


def estimate(
    place: Place, steps: int, result: Mapping[str, Any], moved: Iterable[program.Collective]
) -> dict[str, Any]:
    limits = roofline(place, flops=result["flops_by_type"], memory_bytes=result["memory_traffic"], collectives=moved)
    bounds = {"fastest": limits.fastest, "slowest": limits.slowest}
    images_per_second = result["batch_size"] / limits.fastest
    return {
        "compute_seconds": limits.compute,
        "memory_seconds": limits.memory,
        "link_seconds": limits.links,
        "link_bytes": limits.link_bytes,
        "bound": limits.bound,
        "step_seconds": bounds,
        "utilization": {name: limits.utilization(seconds) for name, seconds in bounds.items()},
        "hours": {name: steps * seconds / 3600 for name, seconds in bounds.items()},
        "chip_hours": {name: place.chips * steps * seconds / 3600 for name, seconds in bounds.items()},
        "images_per_second": images_per_second,  # what the hosts must deliver for the fastest step
        "images_per_second_each_chip": images_per_second / place.chips,
    }


def advice(result: Mapping[str, Any], place: Place | None) -> list[str]:
    """What to change in a run that does not fit."""
    memory, devices = result["memory"], result["devices"]
    fixed = sum(memory[name] for name in STATE)
    room = memory["limit"] - fixed
    settings = {key: result[key] for key in ("compute_dtype", "shard_state")} | {"model": {"remat": result["remat"]}}
    changes = at_same_batch(settings, 1, devices)
    found = [f"{spelled({key: value})}: {WHY[key]}" for key, value in changes if key in WHY]
    if room <= 0:
        return [
            *(line for line in found if "shard_state" in line),
            f"a smaller model, or a chip with more memory: the state alone takes {size(fixed)} on each device, "
            "whatever the batch",
        ]
    # Memory other than the state grows in proportion to the images of a device, or faster.
    per_device = int(result["batch_size"] / devices * room / (memory["needed"] - fixed))
    if per_device:
        found.append(f"--config.batch_size={per_device * devices}, if activations shrink with the batch")
    chips = -(-result["batch_size"] // max(per_device, 1))
    if per_device and place and chips <= place.largest:
        found.append(f"{chips} chips or more of {place.chip.name}, for the same batch")
    if not per_device:
        found.append("one image on a device does not fit: use a smaller model or image, or a chip with more memory")
    return found
