"""A plan for people to read."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.planning.remedies import spelled

# Entries of a plan's "memory" for the state that a step changes.
STATE = ("parameters", "optimizer", "method_state")
# Number of lines of our code that are printed, those that send most first. The JSON has all.
PRINTED_LINES = 8
TIMES = {"arithmetic": "compute", "memory": "memory", "links": "link"}


def size(count: float) -> str:
    """Bytes for people: "1.31 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 999.5:  # what three digits can say
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def number(value: float) -> str:
    """Three digits, without an exponent: "0.00526", "14.3", "1,234"."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:,.{max(digits, 0)}f}"


def print_plan(result: Mapping[str, Any]) -> None:
    memory, limit = result["memory"], result["memory"]["limit"]
    print(f"{result['method']}, {result['model']}, {result['compute_dtype']}, on {result['topology']}: ", end="")
    print(f"{result['batch_size']} images a step, {result['batch_size'] // result['devices']} on each device")
    if "share_of_steps" in result:
        share = result["share_of_steps"]
        print(f"\nof config.mix, a step with the largest views: {share:g} of the steps; others need less", end="")
    verdict = {True: "fits", False: "DOES NOT FIT", None: "memory of the devices is not known"}[result["fits"]]
    of = f" of {size(limit)}" if limit else ""
    print(f"\n{verdict}: {size(memory['needed'])}{of} on each device (compiled in {result['compile_seconds']:.0f} s)")
    names = {
        "parameters": "parameters",
        "optimizer": "optimizer",
        "method_state": "teacher, queues, running statistics",
        "batch": "batch",
        "activations": "activations kept for the gradient",
        "temporaries": "other temporaries" if "activations" in memory else "activations and other temporaries",
        "new_outputs": "outputs beside the state",
        "program": "the program itself",
    }
    for name, title in names.items():
        if name in memory:
            print(f"  {title:<38}{size(memory[name]):>12}")
    if "flops" in result:
        print(f"\neach step on each device: {number(result['flops'] / 1e9)} GFLOP, ", end="")
        print(f"{size(result['memory_traffic'])} of memory traffic")
        for warning in result["warnings"]:
            print(f"counted too low: {warning}")
        print_collectives(result["collectives"])
    if "estimate" in result:
        print_estimate(result)
    for remedy in result["advice"]:
        print(f"  try {remedy}")
    if result.get("changes"):  # by a search
        print(f"\nthis is the plan with {spelled(result['changes'])}")
        if result["images_fewer"]:
            print(f"its {result['steps']:,} steps see {result['images_fewer']:,} images fewer than those of the config")


def print_collectives(entries: Sequence[Mapping[str, Any]]) -> None:
    print("\ncollectives each step, by kind:")
    kinds: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for entry in entries:
        if entry["each_step"]:
            kinds[entry["kind"]].append(entry)
    for kind, group in kinds.items():
        calls, whole, sent = (sum(entry[key] for entry in group) for key in ("calls", "bytes", "sent"))
        print(f"  {kind:<20}{calls:>5} with {size(whole)} in all; each device sends {size(sent)}")
    print("by line (< its caller); where the compiler merged several, one is named:")
    for entry in entries[:PRINTED_LINES]:
        when = "" if entry["each_step"] else ", on logged steps"
        print(f"  {size(entry['sent']):>12}  {entry['kind']}{when}  {entry['line']}")


def print_estimate(result: Mapping[str, Any]) -> None:
    found = result["estimate"]

    def both(values: Mapping[str, float], factor: float = 1.0) -> str:
        return f"{number(factor * values['fastest'])} / {number(factor * values['slowest'])}"

    print("\nat least, with all collectives hidden behind the arithmetic / with none hidden:")
    times = ", ".join(f"{name} {number(1e3 * found[f'{key}_seconds'])}" for name, key in TIMES.items())
    print(f"  a step: {both(found['step_seconds'], 1e3)} ms, bound by {found['bound']} ({times} ms; ", end="")
    print(f"{size(found['link_bytes'])} over each link)")
    print(f"  at most {both(found['utilization'], 100)} % of the peak arithmetic")
    print(f"  {result['steps']:,} steps: {both(found['hours'])} hours, ", end="")
    print(f"{both(found['chip_hours'])} chip-hours on {result['accelerator_type']}")
    if expected := found.get("calibrated"):
        print(f"to be expected, as steps of {expected['runs']} run(s) on this chip took ", end="")
        print(f"{number(expected['factor'])} times the fastest planned:")
        print(f"  a step: {number(1e3 * expected['step_seconds'])} ms, ", end="")
        print(f"{number(100 * expected['utilization'])} % of the peak arithmetic")
        print(f"  {result['steps']:,} steps: {number(expected['hours'])} hours, ", end="")
        print(f"{number(expected['chip_hours'])} chip-hours")
    print(f"the fastest step needs {found['images_per_second']:,.0f} images a second from all hosts together, ", end="")
    print(f"{found['images_per_second_each_chip']:,.0f} for each chip")
    print("assuming that\n  " + ";\n  ".join(result["assumptions"]))


def print_calibration(added: Mapping[str, Any]) -> None:
    print(
        f"{added['method']}, {added['model']}, {added['compute_dtype']}, on {added['topology']} ({added['devices']}): ",
        end="",
    )
    print(
        f"a step took {number(1e3 * added['measured_seconds'])} ms without the {number(100 * added['waiting'])} % of ",
        end="",
    )
    print(f"the time that it waited for images, {number(added['factor'])} times the fastest planned, ", end="")
    print(f"{number(1e3 * added['planned_seconds'])} ms; it reached {number(100 * added['utilization'])} % of the peak")
