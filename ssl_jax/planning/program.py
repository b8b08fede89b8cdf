"""What a compiled program does: what its collectives move, its activations hold, and it reads and writes, in bytes; and
the arithmetic of its loops."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from ssl_jax.planning import hlo

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
# Results that are their operand under another name, or brought, whole or in part, into another memory.
ALIASES = ("get-tuple-element", "bitcast", "copy-start", "copy-done", "slice-start", "slice-done", "opt-barrier")
# What moves nothing itself.
STILL = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "opt-barrier",
    "while",
    "conditional",
    "call",
)

_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_WINDOW = re.compile(r"window=\{([^}]*)\}")
_DIM_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: of COLLECTIVES. shapes: all that it moves: what is reduced, the whole of what is gathered, scattered or
    exchanged, as one device sees it. group: devices that take part. times: a step; those in loops that do not say how
    many rounds they have count once. conditional: within a branch, not taken in each step. op_name,
    stack: as of `Instruction` and `Module`; of several that the compiler has merged, those of one."""

    kind: str
    shapes: tuple[hlo.ArrayShape, ...]
    group: int
    times: int
    conditional: bool
    op_name: str
    stack: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of `shapes`, each time."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def sent_bytes(self) -> float:
        """That each device sends, each time, where the devices form a ring, which is the least there is: an all-reduce
        is a reduce-scatter and an all-gather, in each of which a device passes on all parts but one."""
        share = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def collectives(module: hlo.Module) -> list[Collective]:
    """All that a step runs, in the order of its program."""
    return list(_collectives(module, module.entry, 1, False))


def _collectives(module: hlo.Module, computation: str, times: int, conditional: bool) -> Iterator[Collective]:
    for instruction in module.computations[computation]:
        kind = instruction.opcode.removesuffix("-start")
        if kind in COLLECTIVES:
            group = _group(instruction.text, module.devices)
            shapes = _moved(kind, instruction, group)
            stack = module.stacks.get(instruction.frame, ())
            yield Collective(kind, shapes, group, times, conditional, instruction.op_name, stack)
            continue
        if instruction.opcode in ("async-update", "async-done"):  # name again what async-start has begun
            continue
        for called in _CALLED.findall(instruction.text):
            yield from _collectives(module, called, times * _rounds(module, instruction), conditional)
        for several, one in _BRANCHES.findall(instruction.text):
            for called in (several or one).split(","):
                yield from _collectives(module, called.strip().lstrip("%"), times, True)


def _rounds(module: hlo.Module, instruction: hlo.Instruction) -> int:
    """Of a loop; 1 of all else, and of one that does not say. JAX's loops count from 0."""
    if instruction.opcode != "while":
        return 1
    if known := _TRIPS.search(instruction.text):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", instruction.text)
    instructions = {i.name: i for i in module.computations[condition[1]]} if condition else {}
    if not instructions:
        return 1
    *_, last = instructions.values()
    if last.opcode != "compare" or "direction=LT" not in last.text:
        return 1
    limits = [instructions[name] for name in last.operands if instructions[name].opcode == "constant"]
    return int(limits[0].text.partition(")")[0]) if limits else 1


def _group(text: str, devices: int) -> int:
    """Devices of a group: of {{0,1},{2,3}}, of [2,4]<=[8] (groups, their size), or all."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    return devices


def _moved(kind: str, instruction: hlo.Instruction, group: int) -> tuple[hlo.ArrayShape, ...]:
    shapes = instruction.shapes
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # Operands, results, and for a permutation two counters.
        count = len(instruction.operands)
        shapes = shapes[count : 2 * count]
    if kind == "reduce-scatter":  # what is whole before
        return tuple(hlo.ArrayShape(s.dtype, (group * s.dims[0], *s.dims[1:]), s.layout) for s in shapes)
    return shapes


def repeated_flops(module: hlo.Module) -> float:
    """Of matrix products and convolutions in the rounds of loops after the first, which XLA's analysis leaves out."""
    return _products(module, module.entry, every_round=True) - _products(module, module.entry, every_round=False)


def _products(module: hlo.Module, computation: str, *, every_round: bool) -> float:
    instructions = {i.name: i for i in module.computations[computation]}
    total = 0.0
    for instruction in instructions.values():
        if instruction.opcode in ("dot", "convolution"):
            operands = [instructions[name].shapes[0].dims for name in instruction.operands]
            total += _product_flops(instruction, *operands)
        if instruction.opcode in ("async-update", "async-done"):  # name again what async-start has begun
            continue
        called = _CALLED.findall(instruction.text)
        inside = sum(_products(module, name, every_round=every_round) for name in called)
        total += inside * (_rounds(module, instruction) if every_round else 1)
    return total


def _product_flops(instruction: hlo.Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    (result,) = instruction.shapes
    if instruction.opcode == "dot":
        summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.text)
        return 2.0 * math.prod(result.dims) * math.prod(left[int(d)] for d in summed[1].split(",") if d)
    labels = _DIM_LABELS.search(instruction.text)
    of_left, of_right, of_result = (
        dict(zip(label, sizes, strict=True))
        for label, sizes in zip(labels.groups(), (left, right, result.dims), strict=True)
    )
    window = _window(instruction.text)
    total = 2.0 * of_result["b"] * of_result["f"] * of_right["i"]
    for number, label in enumerate(label for label in of_result if label.isdigit()):
        options = {key: values[number] for key, values in window.items()}
        total *= _uses(of_left[label], of_right[label], of_result[label], options)
    return total


def _window(text: str) -> dict[str, list[str]]:
    """{"size": ["3", "3"], "pad": ["1_1", "1_1"], ...} of window={size=3x3 pad=1_1x1_1 ...}"""
    found = _WINDOW.search(text)
    return {key: values.split("x") for key, values in (part.split("=") for part in found[1].split())} if found else {}


def _uses(size: int, kernel: int, outputs: int, window: Mapping[str, str]) -> int:
    """Products of an input with a kernel's entry along one axis, over all outputs: not of padding, nor of the zeros of
    a dilation, by which XLA writes batched products and gradients as convolutions."""
    stride, spread, reach = (int(window.get(key, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(window.get("pad", "0_0").partition("_")[0])
    place = np.arange(outputs)[:, None] * stride - before + np.arange(kernel) * reach
    return int(np.sum((place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)))


def activation_bytes(module: hlo.Module) -> int:
    """What the forward pass leaves in the main memory for the backward one, with padding.

    Also what it makes on the chip and puts away into the main memory until then. Of a step that is not differentiated
    it is 0. Values that are computed a second time instead are not counted.
    """
    instructions = {i.name: i for i in module.computations[module.entry]}
    kept: dict[tuple[str, int | None], bool] = {}  # a result -> whether it is ever in the main memory
    for instruction in instructions.values():
        if _is_backward(instruction) and not _is_alias(instruction):
            for operand in instruction.operands:
                made, index, in_main_memory = _origin(instructions, operand)
                kept[made, index] = kept.get((made, index), False) or in_main_memory
    total = 0
    for (name, index), in_main_memory in kept.items():
        made = instructions.get(name)
        loop = made is not None and made.opcode == "while"  # of which it keeps what is stacked
        if in_main_memory and made is not None and _is_forward(made) and (loop or made.opcode not in STILL):
            shapes = made.shapes if index is None else made.shapes[index : index + 1]
            total += sum(shape.padded_bytes for shape in shapes)
    return total


def _origin(instructions: Mapping[str, hlo.Instruction], name: str) -> tuple[str, int | None, bool]:
    """(the instruction that made a value, which of its results it is or None for all, whether the value was in the main
    memory on its way from there)"""
    index, in_main_memory = None, False
    while (made := instructions.get(name)) is not None:
        if not _is_alias(made):
            shapes = made.shapes if index is None else made.shapes[index : index + 1]
            in_main_memory |= any(shape.in_main_memory for shape in shapes)
            break
        if made.opcode == "get-tuple-element":
            found = re.search(r"index=(\d+)", made.text)
            index = int(found[1]) if found else None
        counters = made.opcode.endswith("-start")  # the last of its results
        in_main_memory |= any(shape.in_main_memory for shape in made.shapes[: -1 if counters else None])
        name = made.operands[0]
    return name, index, in_main_memory


def traffic_bytes(module: hlo.Module) -> int:
    """What a step reads from the main memory and writes to it, with padding; not in branches.

    An operand that an instruction reads only a part of counts as a whole, and once for each instruction that reads it.
    """
    return _traffic(module, module.entry)


def _traffic(module: hlo.Module, computation: str) -> int:
    instructions = {i.name: i for i in module.computations[computation]}
    total = 0
    for instruction in instructions.values():
        if instruction.opcode in ("while", "call"):
            called = _CALLED.findall(instruction.text)
            total += sum(_traffic(module, name) for name in called) * _rounds(module, instruction)
        if instruction.opcode in STILL or instruction.opcode.endswith("-done"):
            continue
        if instruction.opcode == "slice-start":  # operand, slice, a counter
            source, part = instruction.shapes[:2]
            total += part.padded_bytes * (source.in_main_memory + part.in_main_memory)
            continue
        touched = list(instruction.shapes)
        if not instruction.opcode.endswith("-start"):  # whose results name their operands
            touched += [s for name in instruction.operands if name in instructions for s in instructions[name].shapes]
        total += sum(shape.padded_bytes for shape in touched if shape.in_main_memory)
    return total


def _is_alias(instruction: hlo.Instruction) -> bool:
    # On TPUs slices that were brought on the chip one by one are put together by a custom call that does nothing.
    return instruction.opcode in ALIASES or "ConcatBitcast" in instruction.text


def _is_backward(instruction: hlo.Instruction) -> bool:
    return "transpose(" in instruction.op_name


def _is_forward(instruction: hlo.Instruction) -> bool:
    return "jvp(" in instruction.op_name and not _is_backward(instruction)
