"""A plan for people to read."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any

# What a plan's "memory" says of the state that a step changes.
STATE = ("parameters", "optimizer", "method_state")
# Lines of our code that are printed, those that move most first; the JSON has all.
PRINTED_LINES = 8
TIMES = {"arithmetic": "compute", "memory": "memory", "links": "link"}


def size(count: float) -> str:
    """Bytes for people: "1.31 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def print_plan(result: Mapping[str, Any]) -> None:
    memory, limit = result["memory"], result["memory"]["limit"]
    print(f"{result['method']}, {result['model']}, {result['compute_dtype']}, on {result['topology']}: ", end="")
    print(f"{result['batch_size']} images a step, {result['batch_size'] // result['devices']} on each device")
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
        print(f"\n{result['flops'] / 1e9:,.1f} GFLOP and {size(result['memory_traffic'])} of memory traffic")
        for warning in result["warnings"]:
            print(f"not counted as often as they run: {warning}")
        print_collectives(result["collectives"])
    if "estimate" in result:
        print_estimate(result)
    for remedy in result["advice"]:
        print(f"  try {remedy}")


def print_collectives(entries: Sequence[Mapping[str, Any]]) -> None:
    print("\ncollectives each step, by kind:")
    kinds: dict[str, list[Mapping[str, Any]]] = collections.defaultdict(list)
    for entry in entries:
        if entry["each_step"]:
            kinds[entry["kind"]].append(entry)
    for kind, group in kinds.items():
        calls, whole, sent = (sum(entry[key] for entry in group) for key in ("calls", "bytes", "sent"))
        print(f"  {kind:<20}{calls:>5} of together {size(whole)}; each device sends {size(sent)}")
    print("by line (< its caller); of several that the compiler merged, one is named:")
    for entry in entries[:PRINTED_LINES]:
        when = "" if entry["each_step"] else ", on logged steps"
        print(f"  {size(entry['sent']):>12}  {entry['kind']}{when}  {entry['line']}")


def print_estimate(result: Mapping[str, Any]) -> None:
    found = result["estimate"]

    def both(values: Mapping[str, float], spec: str) -> str:
        return f"{format(values['fastest'], spec)} to {format(values['slowest'], spec)}"

    step = {name: 1e3 * seconds for name, seconds in found["step_seconds"].items()}
    print(f"\na step takes at least {both(step, '.2f')} ms, bound by {found['bound']}: ", end="")
    times = (f"{name} {1e3 * found[f'{key}_seconds']:.2f}" for name, key in TIMES.items())
    print(f"{', '.join(times)} ms; {size(found['link_bytes'])} over each link")
    print(f"{both(found['utilization'], '.0%')} of the peak arithmetic")
    print(f"{result['steps']:,} steps: {both(found['hours'], '.1f')} hours, ", end="")
    print(f"{both(found['chip_hours'], ',.0f')} chip-hours on {result['accelerator_type']}")
    print("assuming that\n  " + ";\n  ".join(result["assumptions"]))
