"""Reads a compiled TPU program: what it moves, by part of the step, and what it sends.

The text is that of `jax.stages.Compiled.as_text()`: one computation after another, and in each one
instruction a line,

    %fusion.3 = bf16[8,56,56,64]{3,0,2,1:T(8,128)(2,1)} fusion(%copy.1, %param.7), kind=kOutput,
        calls=%fused_computation.3, metadata={op_name="jit(train_step)/jvp(Siamese)/..."}

An instruction of the entry, or of a loop's body, reads its operands from memory and writes its
result there; what happens inside a fusion stays on the chip.
"""

import collections
import re
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
    "all-to-all",
)
# Instructions that move nothing by themselves: names for what is there, and prefetches, whose bytes
# are counted where they are used.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call"),
    *("copy-start", "copy-done", "slice-start", "slice-done", "async-start", "async-update"),
    *("async-done", "custom-call-start", "custom-call-done"),
    "custom-call",  # of the compiler's own: views of what a prefetch has brought
}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_ARRAY = re.compile(r"\b([a-z]+?)(\d+)?(?:e\d\w*)?\[([\d,]*)\]")
_BACKBONE = re.compile(r"/backbone/(?:layer\d+_\d+/)?(conv|bn|downsample_conv|downsample_bn|Relu)?")
PARTS = (
    "views",
    *(f"{part} {way}" for way in ("forward", "backward") for part in ("conv", "norm", "other")),
    "heads and loss",
    "target",
    "update",  # of the parameters, their averages and the figures
    "unnamed",
)


class Instruction(NamedTuple):
    """One line of the program.

    Attributes:
      name: without its percent sign.
      kind: its operation, such as "fusion".
      result_bytes: of its result, all arrays of a tuple together.
      operands: names of what it reads.
      op_name: path of the operation in the traced function; "" if it has none.
      line: the line itself.
    """

    name: str
    kind: str
    result_bytes: int
    operands: tuple[str, ...]
    op_name: str
    line: str


def array_bytes(shapes: str) -> int:
    """Bytes of an array or a tuple of arrays, as a program writes them: (f32[4,8]{1,0}, pred[])."""
    total = 0
    for kind, bits, sizes in _ARRAY.findall(shapes):
        if kind == "token":
            continue
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += -(-count * int(bits or 8) // 8)
    return total


def read_program(text: str) -> list[Instruction]:
    """The instructions of the entry and of the loops' bodies, in their order."""
    computations, entry, here = collections.defaultdict(list), "", ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            here = start[2]
            entry = here if start[1] else entry
        elif here and (found := _INSTRUCTION.match(line)):
            name, shapes, kind, rest = found.groups()
            operands = tuple(re.findall(r"%([\w.-]+)", _arguments(rest)))
            op_name = re.search(r'op_name="([^"]*)"', rest)
            computations[here].append(
                Instruction(
                    name, kind, array_bytes(shapes), operands, op_name[1] if op_name else "", line
                )
            )
    found, todo = [], [entry]
    while todo:
        for instruction in computations[todo.pop(0)]:
            found.append(instruction)
            if instruction.kind in ("while", "conditional", "call"):
                called = re.findall(r"(?:body|to_apply|_computation)=%?([\w.-]+)", instruction.line)
                todo += called
    return found


def _arguments(rest: str) -> str:
    """What stands between an instruction's brackets."""
    depth = 1
    for place, letter in enumerate(rest):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return rest[:place]
    return rest


def moved_bytes(program: list[Instruction]) -> dict[str, int]:
    """{instruction: bytes} that it reads and writes; those that move nothing are left out."""
    of_result = {instruction.name: instruction.result_bytes for instruction in program}
    return {
        instruction.name: instruction.result_bytes
        + sum(of_result.get(name, 0) for name in set(instruction.operands))
        for instruction in program
        if instruction.kind not in _FREE
    }


def part_of(op_name: str) -> str:
    """The part of the step that an operation belongs to, one of PARTS."""
    if "/views/" in op_name or op_name.endswith("/views"):
        return "views"
    if "/target/" in op_name:
        return "target"
    if "jvp(" not in op_name:
        return "update" if op_name else "unnamed"
    if not (found := _BACKBONE.search(op_name)):
        return "heads and loss"
    way = "backward" if "transpose(" in op_name else "forward"
    layer = (found[1] or "").removeprefix("downsample_")
    return f"{ {'conv': 'conv', 'bn': 'norm'}.get(layer, 'other') } {way}"


def by_part(program: list[Instruction]) -> dict[str, int]:
    """{part: bytes} of all PARTS."""
    total, named = dict.fromkeys(PARTS, 0), {x.name: x.op_name for x in program}
    for name, count in moved_bytes(program).items():
        total[part_of(named[name])] += count
    return total


def collectives(program: list[Instruction]) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes", "asynchronous"}}: how many, what they send, how many in passing."""
    found = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "asynchronous": 0})
    of_result = {instruction.name: instruction.result_bytes for instruction in program}
    for instruction in program:
        kind = instruction.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            figures = found[kind]
            figures["count"] += 1
            figures["bytes"] += sum(of_result.get(name, 0) for name in instruction.operands)
            figures["asynchronous"] += instruction.kind.endswith("-start")
    return dict(found)
