"""What a compiled program sends between devices, and the arithmetic of its loops."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from ssl_jax.planning import hlo

_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
# Of NVIDIA's libraries, for products and convolutions.
_LIBRARY_CALL = re.compile(r'custom_call_target="__(cublas|cudnn)\$(\w+)')
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}")
_DIM_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a step.

    kind: one of hlo.COLLECTIVES.
    shapes: all that it moves, as one device sees it: what is reduced, or the whole of what is gathered, scattered or
      exchanged.
    group: number of devices that take part.
    times: how often a step runs it; in a loop that does not say how many rounds it has, it counts once.
    conditional: it is in a branch that not every step takes.
    op_name, stack: as in `Instruction` and `Module`. If the compiler merged several collectives, those of one of them.
    """

    kind: str
    shapes: tuple[hlo.ArrayShape, ...]
    group: int
    times: int
    conditional: bool
    op_name: str
    stack: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of `shapes`: what it moves each time."""
        return sum(shape.bytes for shape in self.shapes)

    @property
    def sent_bytes(self) -> float:
        """Bytes that each device sends each time if the devices form a ring; no other way sends less.

        An all-reduce is a reduce-scatter and an all-gather. In each of the two, a device passes on all parts but one.
        """
        share = (self.group - 1) / self.group
        return self.bytes * {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)


def collectives(module: hlo.Module) -> list[Collective]:
    """All collectives that a step runs, in the order of its program."""
    return list(_collectives(module, module.entry, 1, False, set()))


def _collectives(
    module: hlo.Module, computation: str, times: int, conditional: bool, begun: set[str]
) -> Iterator[Collective]:
    """begun: the chains that have had a piece already."""
    for instruction in module.computations[computation]:
        kind = instruction.opcode.removesuffix("-start")
        if kind in hlo.COLLECTIVES:
            if computation.startswith("all-reduce-scatter"):  # on TPUs, it is an all-reduce and a slice of that
                kind = "reduce-scatter"
            if (chain := hlo.chain(instruction)) in begun:
                continue
            if chain:
                begun.add(chain)
            group = _group(instruction.text, module.devices)
            shapes = _moved(instruction, group)
            named = _named(module, instruction)
            stack = module.stacks.get(named.frame, ())
            yield Collective(kind, shapes, group, times, conditional, named.op_name, stack)
            continue
        if instruction.opcode in ("async-update", "async-done"):  # both name again what async-start began
            continue
        rounds = times * hlo.rounds(module, instruction)
        for called in hlo.called(instruction):
            yield from _collectives(module, called, rounds, conditional, begun)
        for several, one in _BRANCHES.findall(instruction.text):
            for called in (several or one).split(","):
                yield from _collectives(module, called.strip().lstrip("%"), times, True, begun)


def _group(text: str, devices: int) -> int:
    """Number of devices in a group, from {{0,1},{2,3}}, [2,4]<=[8] (groups, their size) or mesh['a'=2,'b'=4] {'b'}
    (sizes of axes, those of a group; 'b':(1)2 is a part of one); all if none is there."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    if found := _MESH.search(text):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part) if part else sizes[name] for name, part in axes)
    return devices


def _named(module: hlo.Module, collective: hlo.Instruction) -> hlo.Instruction:
    """The collective; if the compiler left it without a name, the sum that it reduces by, which keeps its name."""
    if not collective.op_name and (reducers := hlo.called(collective)):
        return module.computations[reducers[0]][-1]
    return collective


def _moved(instruction: hlo.Instruction, group: int) -> tuple[hlo.ArrayShape, ...]:
    kind, shapes = instruction.opcode.removesuffix("-start"), instruction.shapes
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # Its shapes are operands, results, and for a permutation two counters.
        count = len(instruction.operands)
        shapes = shapes[count : 2 * count]
    if kind == "reduce-scatter":  # the whole that is scattered
        return tuple(hlo.ArrayShape(s.dtype, (group * s.dims[0], *s.dims[1:]), s.layout) for s in shapes)
    return shapes


def repeated_flops(module: hlo.Module) -> float:
    """FLOPs that XLA's analysis leaves out: of matrix products and convolutions in loops, in rounds after the first."""
    every, first = (_products(module, module.entry, every_round=every) for every in (True, False))
    return sum(every.values()) - sum(first.values())


def product_flops(module: hlo.Module) -> dict[str, float]:
    """FLOPs of all matrix products and convolutions by the type of their operands: "bf16"; "f32", or "highest" for
    float32 at the highest precision."""
    return _products(module, module.entry, every_round=True)


def has_library_calls(module: hlo.Module) -> bool:
    """Whether it calls NVIDIA's libraries for products or convolutions."""
    return any(_LIBRARY_CALL.search(i.text) for body in module.computations.values() for i in body)


def warnings(module: hlo.Module) -> list[str]:
    """What is not counted in the loops that each step runs."""
    loops = [i for i in _run(module, module.entry) if i.opcode == "while"]
    unknown = [loop for loop in loops if hlo.known_rounds(module, loop) is None]
    places = sorted({next(iter(module.stacks.get(loop.frame, ())), "(the compiler's)") for loop in unknown})
    return [f"loops of unknown length, which count as one round: {', '.join(places)}"] if places else []


def _run(module: hlo.Module, computation: str) -> Iterator[hlo.Instruction]:
    """The computation's instructions, and those of the computations that it calls, without branches."""
    for instruction in module.computations[computation]:
        yield instruction
        for name in hlo.called(instruction):
            yield from _run(module, name)


def _products(module: hlo.Module, computation: str, *, every_round: bool) -> dict[str, float]:
    """FLOPs by the type of the operands."""
    instructions = {i.name: i for i in module.computations[computation]}
    total: dict[str, float] = collections.defaultdict(float)
    for instruction in instructions.values():
        if instruction.opcode in ("dot", "convolution") or _LIBRARY_CALL.search(instruction.text):
            shapes = [instructions[name].shapes[0] for name in instruction.operands]
            highest = shapes[0].dtype == "f32" and "operand_precision={highest" in instruction.text
            kind = "highest" if highest else shapes[0].dtype
            total[kind] += _product_flops(instruction, *(shape.dims for shape in shapes[:2]))
        if instruction.opcode in ("async-update", "async-done"):  # both name again what async-start began
            continue
        rounds = hlo.rounds(module, instruction) if every_round else 1
        for name in hlo.called(instruction):
            for kind, flops in _products(module, name, every_round=every_round).items():
                total[kind] += rounds * flops
    return dict(total)


def _product_flops(instruction: hlo.Instruction, left: tuple[int, ...], right: tuple[int, ...]) -> float:
    result = instruction.shapes[0].dims  # a library's call has its work space, too
    library = _LIBRARY_CALL.search(instruction.text)
    if instruction.opcode == "dot" or (library and library[1] == "cublas"):
        summed = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)[\}\]]', instruction.text)
        assert summed is not None, instruction.text
        axes = summed[1].replace('"', "").split(",")
        return 2.0 * math.prod(result) * math.prod(left[int(d)] for d in axes if d)
    # cuDNN describes a gradient by its forward convolution: input and filter are to be found there.
    if library and "BackwardInput" in library[2]:
        left, result = result, left
    elif library and "BackwardFilter" in library[2]:
        right, result = result, right
    labels = _DIM_LABELS.search(instruction.text)
    assert labels is not None, instruction.text
    of_left, of_right, of_result = (
        dict(zip(label, sizes, strict=True))
        for label, sizes in zip(labels.groups(), (left, right, result), strict=True)
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
    """Number of products of an input with a kernel's entry along one axis, over all outputs.

    Padding does not count, nor do the zeros of a dilation. With these, XLA writes batched products and gradients as
    convolutions.
    """
    stride, spread, reach = (int(window.get(key, "1")) for key in ("stride", "lhs_dilate", "rhs_dilate"))
    before = int(window.get("pad", "0_0").partition("_")[0])
    place = np.arange(outputs)[:, None] * stride - before + np.arange(kernel) * reach
    return int(np.sum((place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)))
