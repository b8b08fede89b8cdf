"""What a compiled program holds in the main memory for its backward pass, and what it reads and writes there."""

import re
from collections.abc import Mapping

from ssl_jax.planning import hlo

# Instructions whose result is their operand under another name, or brought, whole or in part, into another memory.
ALIASES = ("get-tuple-element", "bitcast", "copy-start", "copy-done", "slice-start", "slice-done", "opt-barrier")
# Instructions that move nothing themselves.
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
# READ_PARTS read a part of their first operand: their result. WRITE_PARTS write the operand of this number into a part
# of their first operand.
READ_PARTS = ("slice", "dynamic-slice", "gather")
WRITE_PARTS = {"dynamic-update-slice": 1, "scatter": 2}

Body = Mapping[str, hlo.Instruction]  # of a computation, by name


def activation_bytes(module: hlo.Module) -> int:
    """Bytes that the forward pass leaves in the main memory for the backward pass, with padding.

    Values that it makes on the chip and stores in the main memory until then count, too. Values that are computed a
    second time instead do not count. 0 for a step that is not differentiated.
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
        loop = made is not None and made.opcode == "while"  # its stacked results are kept
        if in_main_memory and made is not None and _is_forward(made) and (loop or made.opcode not in STILL):
            shapes = made.shapes if index is None else made.shapes[index : index + 1]
            total += sum(shape.padded_bytes for shape in shapes)
    return total


def _origin(instructions: Body, name: str) -> tuple[str, int | None, bool]:
    """(the instruction that made a value, which of its results the value is or None for all, whether the value was in
    the main memory on its way from there)"""
    index, in_main_memory = None, False
    while (made := instructions.get(name)) is not None:
        if not _is_alias(made):
            shapes = made.shapes if index is None else made.shapes[index : index + 1]
            in_main_memory |= any(shape.in_main_memory for shape in shapes)
            break
        if made.opcode == "get-tuple-element":
            found = re.search(r"index=(\d+)", made.text)
            index = int(found[1]) if found else None
        counters = made.opcode.endswith("-start")  # then its last result is a counter
        in_main_memory |= any(shape.in_main_memory for shape in made.shapes[: -1 if counters else None])
        name = made.operands[0]
    return name, index, in_main_memory


def traffic_bytes(module: hlo.Module) -> int:
    """Bytes that a step reads from the main memory and writes to it, with padding, without branches.

    If an instruction slices or gathers from an operand, or writes a slice or rows of it in place, only that part
    counts. All other operands count as a whole, once for each instruction that reads them.
    """
    return _traffic(module, module.entry)


def _traffic(module: hlo.Module, computation: str) -> int:
    instructions = {i.name: i for i in module.computations[computation]}
    total, begun = 0, set()
    for instruction in instructions.values():
        if instruction.opcode in ("while", "call"):
            inside = sum(_traffic(module, name) for name in hlo.called(instruction))
            total += inside * hlo.rounds(module, instruction)
        if instruction.opcode in STILL or instruction.opcode.endswith("-done") or "AllocateBuffer" in instruction.text:
            continue
        if instruction.opcode == "fusion" and (body := _body(module, instruction)):
            total += _fusion_bytes(module, instruction, body)
            # A collective that a TPU runs beside other work is written once, though each piece of that work names it.
            for piece in body.values():
                if piece.opcode in hlo.COLLECTIVES and (chain := hlo.chain(piece)) not in begun:
                    if chain:
                        begun.add(chain)
                    total += sum(_main_bytes(shape) for shape in piece.shapes)
            continue
        if instruction.opcode == "slice-start":  # operand, slice, a counter
            source, part = instruction.shapes[:2]
            total += part.padded_bytes * (source.in_main_memory + part.in_main_memory)
            continue
        if instruction.opcode in (*READ_PARTS, *WRITE_PARTS):
            total += _part_bytes(instruction, instructions)
            continue
        touched = list(instruction.shapes)
        if not instruction.opcode.endswith("-start"):  # their results include their operands
            touched += [s for name in instruction.operands if name in instructions for s in instructions[name].shapes]
        total += sum(_main_bytes(shape) for shape in touched)
    return total


def _main_bytes(shape: hlo.ArrayShape) -> int:
    return shape.padded_bytes if shape.in_main_memory else 0


def _part_bytes(instruction: hlo.Instruction, instructions: Body) -> int:
    """Bytes of reading or writing a part: in the whole, in the place that it goes to or comes from, and the indices."""
    whole, *others = (instructions[name].shapes[0] for name in instruction.operands)
    if instruction.opcode in READ_PARTS:
        part = instruction.shapes[0]
        others.append(part)
    else:
        part = _written(instruction, instructions).shapes[0]
    return part.padded_bytes * whole.in_main_memory + sum(_main_bytes(shape) for shape in others)


def _written(instruction: hlo.Instruction, instructions: Body) -> hlo.Instruction:
    """What is written: the instruction's result, or only the part if the instruction writes a part."""
    number = WRITE_PARTS.get(instruction.opcode)
    return instruction if number is None else instructions[instruction.operands[number]]


def _fusion_bytes(module: hlo.Module, fusion: hlo.Instruction, body: Body) -> int:
    total = 0
    for inner in body.values():
        if inner.opcode == "parameter":
            size = sum(_main_bytes(shape) for shape in inner.shapes)
            total += _read_bytes(module, body, inner, size) if size else 0
    *_, root = body.values()
    made = [body.get(name) for name in root.operands] if root.opcode == "tuple" else [root]
    for result, shape in zip(made, fusion.shapes, strict=False):
        value, place = _behind(module, result, body)
        if value is None or not shape.in_main_memory or value.opcode in ("parameter", *hlo.COLLECTIVES):
            continue
        written = _written(value, place)
        total += shape.padded_bytes if written is value else written.shapes[0].padded_bytes
    return total


def _read_bytes(module: hlo.Module, body: Body, value: hlo.Instruction, whole: int) -> int:
    """What a fused computation, with those within it, reads of a value that has `whole` bytes in the main memory."""
    total = 0
    for user, number in ((i, n) for i in body.values() for n, name in enumerate(i.operands) if name == value.name):
        if user.opcode == "bitcast":
            total += _read_bytes(module, body, user, whole)
        elif user.opcode == "fusion" and (within := _body(module, user)):
            parameter = next(i for i in within.values() if i.opcode == "parameter" and _number(i) == number)
            total += _read_bytes(module, within, parameter, whole)
            if _behind(module, user, body)[0] is parameter:
                total += _read_bytes(module, body, user, whole)
        elif user.opcode in READ_PARTS and number == 0:
            total += user.shapes[0].padded_bytes
        elif not (user.opcode in WRITE_PARTS and number == 0) and user.opcode not in ("tuple", *hlo.COLLECTIVES):
            total += whole
    return min(total, whole)


def _behind(module: hlo.Module, value: hlo.Instruction | None, body: Body) -> tuple[hlo.Instruction | None, Body]:
    """What makes a value of a fused computation, and where: without bitcasts, in the computations within it, too."""
    while value is not None:
        if value.opcode == "bitcast":
            value = body.get(value.operands[0])
        elif value.opcode == "fusion" and (within := _body(module, value)):
            *_, value = within.values()
            body = within
        else:
            break
    return value, body


def _body(module: hlo.Module, fusion: hlo.Instruction) -> Body:
    bodies = [module.computations[name] for name in hlo.called(fusion) if name in module.computations]
    return {inner.name: inner for inner in bodies[0]} if bodies else {}


def _number(parameter: hlo.Instruction) -> int:
    return int(parameter.text.partition(")")[0])


def _is_alias(instruction: hlo.Instruction) -> bool:
    # On TPUs, slices are brought on the chip one by one. A custom call that does nothing then joins them.
    return instruction.opcode in ALIASES or "ConcatBitcast" in instruction.text


def _is_backward(instruction: hlo.Instruction) -> bool:
    return "transpose(" in instruction.op_name


def _is_forward(instruction: hlo.Instruction) -> bool:
    return "jvp(" in instruction.op_name and not _is_backward(instruction)
