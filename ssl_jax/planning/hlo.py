"""Reads what XLA has compiled: its text (HLO), for the bytes that collectives move and activations hold."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePath

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

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<opcode>[a-z][a-z0-9\-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(?P<type>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%?[\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TABLE_ROW = re.compile(r'^(\d+) (?:"(.*)"|\{(.*)\})$')


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """One array of a result. `layout`: as XLA prints it, "1,0:T(8,128)S(1)"; "" where it does not."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Of the values, without padding."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @property
    def padded_bytes(self) -> int:
        """In memory: the dimensions of the first tile, T(8,128), are filled up to whole tiles."""
        order, _, tiling = self.layout.partition(":")
        tile = re.match(r"T\(([\d,]+)\)", tiling)
        if not tile or not self.dims:
            return self.bytes
        dims, minor_to_major = list(self.dims), [int(d) for d in order.split(",")]
        for size, dim in zip(reversed(tile[1].split(",")), minor_to_major, strict=False):
            dims[dim] = -(-dims[dim] // int(size)) * int(size)
        return math.prod(dims) * _bits(self.dtype) // 8

    @property
    def in_main_memory(self) -> bool:
        """Not in a memory of the chip's own, S(1) and above."""
        return not re.search(r"S\([1-9]", self.layout)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]  # of its result, tuples flattened
    operands: tuple[str, ...]
    text: str  # what follows the operands' opening parenthesis
    op_name: str  # JAX's: "jit(train_step)/shard_map/jvp(ResNet)/conv1/..."
    frame: int  # in the module's stack frames, 0 for none


@dataclasses.dataclass(frozen=True)
class Module:
    """computations: name -> instructions, in the order of execution where the module is scheduled. entry: a name of
    them. devices: that run it. stacks: frame -> ("models/norm.py:158 average", its caller, ...)."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    devices: int
    stacks: Mapping[int, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: of COLLECTIVES. shapes: all that it moves: what is reduced, the whole of what is gathered, scattered or
    exchanged, as one device sees it. group: devices that take part. times: a step; those in loops whose number of
    rounds the compiler does not know count once. conditional: within a branch, not taken in each step. op_name,
    stack: as of `Instruction` and `Module`; of several that the compiler has merged, those of one."""

    kind: str
    shapes: tuple[ArrayShape, ...]
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


def parse(text: str, package: str = "ssl_jax") -> Module:
    """`compiled.as_text()`. `package`: the directory whose files a stack names; all others are left out of it.

    Raises: ValueError for a text without an entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name, body = "", "", []
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            name, body = found["name"], []
            entry = name if found["entry"] else entry
        elif line == "}":
            computations[name] = tuple(body)
        elif found := _INSTRUCTION.match(line):
            body.append(_instruction(found))
    if not entry:
        raise ValueError("no ENTRY computation; give the text of a compiled module, compiled.as_text()")
    header = text.partition("\n")[0]
    counts = [re.search(rf"{key}=(\d+)", header) for key in ("num_partitions", "replica_count")]
    devices = math.prod(int(found[1]) for found in counts if found)
    return Module(computations, entry, devices, _stacks(text, package))


def _instruction(found: re.Match[str]) -> Instruction:
    rest = found["rest"]
    op_name = re.search(r'op_name="([^"]*)"', rest)
    frame = re.search(r"stack_frame_id=(\d+)", rest)
    return Instruction(
        name=found["name"],
        opcode=found["opcode"],
        shapes=_arrays(found["shape"]),
        operands=tuple(re.findall(r"%([\w.\-]+)", rest.partition(")")[0])),
        text=rest,
        op_name=op_name[1] if op_name else "",
        frame=int(frame[1]) if frame else 0,
    )


def _arrays(text: str) -> tuple[ArrayShape, ...]:
    return tuple(
        ArrayShape(found["type"], tuple(int(d) for d in found["dims"].split(",") if d), found["layout"] or "")
        for found in _ARRAY.finditer(text)
    )


def _bits(dtype: str) -> int:
    """pred: 8; else the first number in the name: f32, bf16, u8, f8e4m3fn."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def _stacks(text: str, package: str) -> dict[int, tuple[str, ...]]:
    """The tables FileNames, FunctionNames, FileLocations and StackFrames before the first computation, joined."""
    tables: dict[str, dict[int, str]] = {}
    rows: dict[int, str] = {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            rows = tables.setdefault(line, {})
        elif found := _TABLE_ROW.match(line):
            rows[int(found[1])] = found[2] or found[3]
        elif _COMPUTATION.match(line):
            break
    stacks: dict[int, tuple[str, ...]] = {0: ()}
    for frame, row in tables.get("StackFrames", {}).items():
        numbers = _numbers(row)
        place = _numbers(tables["FileLocations"][numbers["file_location_id"]])
        path = PurePath(tables["FileNames"][place["file_name_id"]])
        own: tuple[str, ...] = ()
        if package in path.parts:
            inside = PurePath(*path.parts[path.parts.index(package) + 1 :])
            own = (f"{inside}:{place['line']} {tables['FunctionNames'][place['function_name_id']]}",)
        # What is printed is one more than the caller's number, so that 1 stands for none (XLA of jaxlib 0.10). Callers
        # precede what they call.
        stacks[frame] = own + stacks[numbers["parent_frame_id"] - 1]
    return stacks


def _numbers(row: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}


def collectives(module: Module) -> list[Collective]:
    """All that a step runs, in the order of its program."""
    return list(_collectives(module, module.entry, 1, False))


def _collectives(module: Module, computation: str, times: int, conditional: bool) -> Iterator[Collective]:
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
        trips = _TRIPS.search(instruction.text)
        rounds = times * int(trips[1]) if instruction.opcode == "while" and trips else times
        for called in _CALLED.findall(instruction.text):
            yield from _collectives(module, called, rounds, conditional)
        for several, one in _BRANCHES.findall(instruction.text):
            for called in (several or one).split(","):
                yield from _collectives(module, called.strip().lstrip("%"), times, True)


def _group(text: str, devices: int) -> int:
    """Devices of a group: of {{0,1},{2,3}}, of [2,4]<=[8] (groups, their size), or all."""
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(found[1])
    return devices


def _moved(kind: str, instruction: Instruction, group: int) -> tuple[ArrayShape, ...]:
    shapes = instruction.shapes
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # Operands, results, and for a permutation two counters.
        count = len(instruction.operands)
        shapes = shapes[count : 2 * count]
    if kind == "reduce-scatter":  # what is whole before
        return tuple(ArrayShape(s.dtype, (group * s.dims[0], *s.dims[1:]), s.layout) for s in shapes)
    return shapes


def activation_bytes(module: Module) -> int:
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
        if in_main_memory and made is not None and _is_forward(made) and made.opcode not in STILL:
            shapes = made.shapes if index is None else made.shapes[index : index + 1]
            total += sum(shape.padded_bytes for shape in shapes)
    return total


def _origin(instructions: Mapping[str, Instruction], name: str) -> tuple[str, int | None, bool]:
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


def traffic_bytes(module: Module) -> int:
    """What a step reads from the main memory and writes to it, with padding; not in branches.

    An operand that an instruction reads only a part of counts as a whole, and once for each instruction that reads it.
    """
    return _traffic(module, module.entry)


def _traffic(module: Module, computation: str) -> int:
    instructions = {i.name: i for i in module.computations[computation]}
    total = 0
    for instruction in instructions.values():
        if instruction.opcode in ("while", "call"):
            trips = _TRIPS.search(instruction.text)
            called = _CALLED.findall(instruction.text)
            total += sum(_traffic(module, name) for name in called) * (int(trips[1]) if trips else 1)
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


def _is_alias(instruction: Instruction) -> bool:
    # On TPUs slices that were brought on the chip one by one are put together by a custom call that does nothing.
    return instruction.opcode in ALIASES or "ConcatBitcast" in instruction.text


def _is_backward(instruction: Instruction) -> bool:
    return "transpose(" in instruction.op_name


def _is_forward(instruction: Instruction) -> bool:
    return "jvp(" in instruction.op_name and not _is_backward(instruction)
