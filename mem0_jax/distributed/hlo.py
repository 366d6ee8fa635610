"""What a compiled program sends between devices, counted from the text of its optimised HLO."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, **{f"{kind}{n}": n for kind in "suf" for n in (4, 8, 16, 32, 64)}, "c64": 64}

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_KNOWN_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of a program.

    Attributes:
        count: how often a device takes part in one.
        sent: bytes a device sends, if they run as rings: n devices that gather or scatter S bytes send
            S (n - 1) / n each, a sum of S bytes twice as much, an exchange or a permutation what it holds.
    """

    count: int
    sent: float


def collectives(text: str) -> dict[str, Collective]:
    """The collectives by kind, those in loops as often as the loops turn.

    A loop whose bound is not a constant (rejection sampling of random numbers) counts once; a branch counts always. A
    collective that the compiler cut into several steps, of one channel, counts as one.
    """
    bodies, entry = _computations(text)
    turns = _turns(bodies, entry)
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for name, lines in bodies.items():
        for number, line in enumerate(lines):
            match = _COLLECTIVE.search(line)
            if match is None or not turns.get(name):
                continue
            kind, channel = match[2], _CHANNEL.search(line)
            key = (kind, channel[1] if channel else f"{name}:{number}")
            sent = _sent(kind, match[1], bool(match[3]), _group_size(line))
            count, most = found.get(key, (0, 0.0))
            found[key] = max(count, turns[name]), max(most, sent)
    totals: dict[str, Collective] = {}
    for (kind, _), (count, sent) in found.items():
        before = totals.get(kind, Collective(0, 0.0))
        totals[kind] = Collective(before.count + count, before.sent + count * sent)
    return totals


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation by its name, and the name of the entry. Raises ValueError where there is none."""
    bodies: dict[str, list[str]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = match[1]
            bodies[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = ""
        elif current:
            bodies[current].append(line)
    if not entry:
        raise ValueError("this is not the text of an HLO module: it has no ENTRY computation")
    return bodies, entry


def _turns(bodies: Mapping[str, list[str]], entry: str) -> dict[str, int]:
    """How often each computation runs when the program runs once."""
    turns: dict[str, int] = {}

    def walk(name: str, times: int) -> None:
        """Adds `times` turns of a computation and what follows for the bodies, branches and functions it calls."""
        turns[name] = turns.get(name, 0) + times
        for line in bodies[name]:
            if loop := _WHILE.search(line):
                known = _KNOWN_TRIPS.search(line)
                walk(loop[2], times * (int(known[1]) if known else _trips(bodies[loop[1]])))
            for called in _CALLED.findall(line):
                walk(called, times)
            for several, one in _BRANCHES.findall(line):
                for branch in filter(None, [one, *(piece.strip(" %") for piece in several.split(","))]):
                    walk(branch, times)

    walk(entry, 1)
    return turns


def _trips(condition: list[str]) -> int:
    """Turns of a loop that counts from 0 up to a constant; 1 where its condition is another."""
    bounds = [int(match[1]) for line in condition if (match := re.search(r" [su]32\[\]\S* constant\((\d+)\)", line))]
    counts_up = any("direction=LT" in line for line in condition)
    return bounds[0] if counts_up and len(bounds) == 1 else 1


def _group_size(line: str) -> int:
    """Devices that take part together, from any of the forms in which HLO writes groups."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        return pairs[1].count("{")
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(iota[2])
    if named := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    return 1


def _sent(kind: str, result: str, started: bool, group: int) -> float:
    """Bytes that one device sends in a collective with this `result` type among `group` devices; see `Collective`."""
    sizes = [
        math.prod(int(n) for n in shape.split(",") if n) * BITS.get(dtype, 32) / 8
        for dtype, shape in _ARRAY.findall(result)
    ]
    # The result of a start holds what goes in and what comes out: the larger is whole.
    size = max(sizes, default=0.0) if started else sum(sizes)
    if kind == "collective-permute":
        return size
    share = (group - 1) / group
    whole = size * group if kind == "reduce-scatter" and not started else size
    return whole * share * (2 if kind == "all-reduce" else 1)
