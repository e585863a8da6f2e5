"""Reads a compiled TPU program: what it moves, by part of the step, and what it sends.

The text is that of `jax.stages.Compiled.as_text()`: one computation after another, and in each one
instruction a line,

    %fusion.3 = bf16[8,56,56,64]{3,0,2,1:T(8,128)(2,1)} fusion(%copy.1, %param.7), kind=kOutput,
        calls=%fused_computation.3, metadata={op_name="jit(train_step)/jvp(Siamese)/..."}

An instruction of the entry, or of a loop's body, reads its operands from memory and writes its
result there; what happens inside a fusion stays on the chip. What a fusion passes on in place (the
buffers of an exchange that runs beside it, or the array that a scatter changes) is not moved.
"""

import collections
import math
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
_IN_PLACE = re.compile(r"output_to_operand_aliasing=\{(.*?)\}, (?:calls|custom_call)")
_PAIR = re.compile(r"\{(\d*)\}: \((\d+)")
_SCATTERED = re.compile(r'/scatter".*"aliasing_operands":\{"lists":\[\{"indices":\["(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_CALLED = re.compile(r"calls=%?([\w.-]+)")
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
      results: bytes of its result, or of each array of a tuple.
      operands: names of what it reads.
      op_name: path of the operation in the traced function; "" if it has none.
      line: the line itself.
    """

    name: str
    kind: str
    results: tuple[int, ...]
    operands: tuple[str, ...]
    op_name: str
    line: str


def array_bytes(shapes: str) -> tuple[int, ...]:
    """Bytes of an array, or of each of a tuple, as programs write them: (f32[4,8]{1,0}, pred[])."""
    return tuple(
        0 if kind == "token" else -(-math.prod(map(int, sizes.split(","))) * int(bits or 8) // 8)
        for kind, bits, sizes in ((x, y, z or "1") for x, y, z in _ARRAY.findall(shapes))
    )


def read_computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
    """All computations by name, and the name of the entry."""
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
    return computations, entry


def read_program(text: str) -> list[Instruction]:
    """The instructions of the entry and of the loops' bodies, in their order."""
    computations, entry = read_computations(text)
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
    of_result = {instruction.name: sum(instruction.results) for instruction in program}
    moved = {}
    for instruction in program:
        if instruction.kind in _FREE:
            continue
        of_results, operands = dict(enumerate(instruction.results)), list(instruction.operands)
        for result, operand in _passed_on(instruction.line):
            of_results.pop(result, None)
            operands[operand] = ""
        read = sum(of_result.get(name, 0) for name in set(operands))
        moved[instruction.name] = sum(of_results.values()) + read
    return moved


def _passed_on(line: str) -> list[tuple[int, int]]:
    """(result, operand) of the arrays that an instruction passes on in place."""
    if scattered := _SCATTERED.search(line):
        return [(0, int(scattered[1]))]
    found = _IN_PLACE.search(line)
    pairs = _PAIR.findall(found[1]) if found else ()
    return [(int(result or 0), int(operand)) for result, operand in pairs]


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


def collectives(text: str) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes", "asynchronous"}} of the exchanges of a program's text.

    Bytes are those of the operand or of the result, whichever is larger. An exchange may be inside
    a fusion: with the slicing that makes an all-reduce a reduce-scatter, or beside other work, in
    several fusions with the same channel.
    """
    computations, _ = read_computations(text)
    found = collections.defaultdict(lambda: {"count": 0, "bytes": 0, "asynchronous": 0})
    seen, program = set(), read_program(text)
    of_entry = {x.name: sum(x.results) for x in program}
    for outer in program:
        called = _CALLED.search(outer.line) if outer.kind == "fusion" else None
        inner = computations[called[1]] if called else []
        is_beside = any("AsyncCollective" in x.line for x in inner)
        of_result = of_entry | {x.name: sum(x.results) for x in inner}
        for instruction in (outer, *inner):
            kind = instruction.kind.removesuffix("-start")
            channel = _CHANNEL.search(instruction.line)
            if kind not in COLLECTIVES or (channel and channel[1] in seen):
                continue
            seen.add(channel[1] if channel else instruction.name)
            is_started = instruction.kind.endswith("-start")
            if called and called[1].startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            operands = sum(of_result.get(name, 0) for name in instruction.operands)
            # The result of one that is only started has the operand, too.
            result = max(instruction.results) if is_started else sum(instruction.results)
            found[kind]["count"] += 1
            found[kind]["bytes"] += max(operands, result)
            found[kind]["asynchronous"] += is_started or is_beside
    return dict(found)
