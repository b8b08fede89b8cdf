"""Reads the text (HLO) of what XLA has compiled."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path, PurePath

# This package's own directory, not the clone around it: that may have the same name and holds the environment, too.
PACKAGE = Path(__file__).parents[1]
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")

_COMPUTATION = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>.*?) (?P<opcode>[a-z][a-z0-9\-]*)\((?P<rest>.*)$"
)
_ARRAY = re.compile(r"\b(?P<type>pred|[a-z]+\d+\w*)\[(?P<dims>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_TABLE_ROW = re.compile(r'^(\d+) (?:"(.*)"|\{(.*)\})$')


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """One array of a result. `layout`: as XLA prints it, "1,0:T(8,128)S(1)"; "" if it prints none."""

    dtype: str
    dims: tuple[int, ...]
    layout: str = ""

    @property
    def bytes(self) -> int:
        """Size of the values, without padding."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    @property
    def padded_bytes(self) -> int:
        """Size in memory: the dimensions that the first tile, T(8,128), covers are padded to whole tiles."""
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
        """False if it is in a memory on the chip itself, S(1) and above."""
        return not re.search(r"S\([1-9]", self.layout)


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]  # of its result, tuples flattened
    operands: tuple[str, ...]
    text: str  # what follows the operands' opening parenthesis
    op_name: str  # JAX's: "jit(train_step)/shard_map/jvp(ResNet)/conv1/..."
    frame: int  # its number in the module's stack frames, 0 for none


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    computations: name -> instructions, in the order of execution if the module is scheduled.
    entry: name of the entry computation. devices: how many run the module.
    stacks: frame -> ("models/norm.py:158 average", its caller, ...).
    """

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str
    devices: int
    stacks: Mapping[int, tuple[str, ...]]


def parse(text: str, package: PurePath = PACKAGE) -> Module:
    """Parses `compiled.as_text()`. `package`: stacks name only files in this directory; by default, the directory that
    this package was imported from.

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


def _stacks(text: str, package: PurePath) -> dict[int, tuple[str, ...]]:
    """Joins the tables FileNames, FunctionNames, FileLocations and StackFrames before the first computation."""
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
        if path.is_relative_to(package):
            own = (f"{path.relative_to(package)}:{place['line']} {tables['FunctionNames'][place['function_name_id']]}",)
        # XLA (jaxlib 0.10) prints the caller's number plus 1, so that 1 stands for no caller. Callers come before the
        # frames that they call.
        stacks[frame] = own + stacks[numbers["parent_frame_id"] - 1]
    return stacks


def _numbers(row: str) -> dict[str, int]:
    return {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row)}


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that it runs each time, without branches."""
    return _CALLED.findall(instruction.text)


def rounds(module: Module, instruction: Instruction) -> int:
    """Rounds of a loop; 1 for all other instructions, and for a loop that does not say."""
    known = known_rounds(module, instruction) if instruction.opcode == "while" else None
    return 1 if known is None else known


def known_rounds(module: Module, loop: Instruction) -> int | None:
    """Rounds of a loop; None if it does not say. JAX's loops count from 0."""
    if known := _TRIPS.search(loop.text):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop.text)
    instructions = {i.name: i for i in module.computations[condition[1]]} if condition else {}
    if not instructions:
        return None
    *_, last = instructions.values()
    if last.opcode != "compare" or "direction=LT" not in last.text:
        return None
    limits = [instructions[name] for name in last.operands if instructions[name].opcode == "constant"]
    return int(limits[0].text.partition(")")[0]) if limits else None


def chain(collective: Instruction) -> str | None:
    """The id that all pieces of one collective share; None for a collective in one piece.

    A TPU may run a collective in pieces, beside other work. The channel would not do: all copies of one JAX function
    share it.
    """
    found = re.search(r'chain_id="(\d+)"', collective.text)
    return found[1] if found else None
