"""Filters of system calls: a table of rules becomes a program for the kernel's classic BPF machine.

What a room may call is listed; any other call of :mod:`node.sandbox.syscalls` fails with EPERM, and one that
is not even listed there, because it is newer, with ENOSYS, so that libraries fall back to an older one.
See seccomp(2), and Documentation/userspace-api/seccomp_filter.rst in the kernel's sources.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from node.sandbox.kernel import SandboxError, syscall
from node.sandbox.syscalls import numbers

_LOAD, _AND, _JUMP, _EQUAL, _NOT_BELOW, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_SET_MODE_FILTER, _TSYNC = 1, 1
_X32 = 0x40000000

Instruction = tuple[int, int, int, int]
"""Operation, jump if true, jump if false, constant."""


@dataclass(frozen=True)
class Machine:
    """An architecture: what the kernel calls it in a filter, and its system calls."""

    audit: int
    calls: Mapping[str, int]


@cache
@cache
def this_machine() -> Machine:
    """Raises SandboxError on an architecture without a table."""
    match platform.machine():
        case "x86_64":
            return Machine(0xC000003E, numbers(0))
        case "aarch64":
            return Machine(0xC00000B7, numbers(1))
    raise SandboxError(
        f"seccomp: expected x86_64 or aarch64, this machine is {platform.machine()}: wardtree knows no other's calls"
    )


@dataclass(frozen=True)
class Test:
    """Whether the low 32 bits of one argument, under a mask, are one of some values."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


@dataclass(frozen=True)
class Rule:
    """A call is let through if all tests of one of the alternatives hold, else it fails with ``error``.

    One empty alternative: always; none: never.
    """

    alternatives: tuple[tuple[Test, ...], ...]
    error: int = errno.EPERM


ALLOWED, REFUSED, UNKNOWN = Rule(((),)), Rule(()), Rule((), errno.ENOSYS)
Rules = Mapping[str, Rule]


def program(rules: Rules, machine: Machine) -> bytes:
    """The filter: struct sock_filter, one after the other. A call of the table without a rule is refused."""
    by_number = {number: rules.get(name, REFUSED) for name, number in machine.calls.items()}
    edges = [(0, UNKNOWN)]
    for number in range(max(by_number) + 2):
        rule = by_number.get(number, UNKNOWN)
        if rule != edges[-1][1]:
            edges.append((number, rule))
    if edges[1][0] == 0:
        del edges[0]
    start = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_NOT_BELOW, 0, 1, _X32),  # the same calls under other numbers
        (_RETURN, 0, 0, _KILL),
    ]
    code = start + _search(edges)
    return b"".join(struct.pack("=HBBI", operation, yes, no, k) for operation, yes, no, k in code)


def _search(edges: list[tuple[int, Rule]]) -> list[Instruction]:
    """A binary search for the call's number among the edges, each the first number of its rule."""
    if len(edges) == 1:
        return _block(edges[0][1])
    middle = len(edges) // 2
    below, above = _search(edges[:middle]), _search(edges[middle:])
    return [(_NOT_BELOW, 0, 1, edges[middle][0]), (_JUMP, 0, 0, len(below)), *below, *above]


def _block(rule: Rule) -> list[Instruction]:
    code: list[Instruction] = []
    for tests in rule.alternatives:
        rest: list[Instruction] = [(_RETURN, 0, 0, _ALLOW)]
        for test in reversed(tests):
            rest = _check(test, len(rest)) + rest
        code += rest
        if not tests:
            return code
    return [*code, (_RETURN, 0, 0, _ERRNO | rule.error)]


def _check(test: Test, rest: int) -> list[Instruction]:
    """Go on to the next instruction if the test holds; jump over ``rest`` more if it does not."""
    code: list[Instruction] = [(_LOAD, 0, 0, _ARGUMENTS + 8 * test.argument)]
    if test.mask != 0xFFFFFFFF:
        code.append((_AND, 0, 0, test.mask))
    last = len(test.values) - 1
    return code + [
        (_EQUAL, last - place, 0 if place < last else rest, value & 0xFFFFFFFF)
        for place, value in enumerate(test.values)
    ]


@cache
def compiled(rules: frozenset[tuple[str, Rule]]) -> bytes:
    """:func:`program` for this machine: a process that is about to fork may have it done for its children."""
    return program(dict(rules), this_machine())


def install(rules: Rules) -> None:
    """Filter every call of this process, its threads and its children from now on. A second filter narrows the first.

    Raises:
        SandboxError: the kernel has no seccomp filters.
    """
    machine, code = this_machine(), compiled(frozenset(rules.items()))
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))  # struct sock_fprog
    try:
        stray = syscall(machine.calls["seccomp"], _SET_MODE_FILTER, _TSYNC, head)
    except OSError as error:
        raise SandboxError(
            f"seccomp: the kernel refused the filter ({os.strerror(error.errno or 0)}); CONFIG_SECCOMP_FILTER is needed"
        ) from error
    if stray:
        raise SandboxError(f"seccomp: thread {stray} already has a filter of its own")
