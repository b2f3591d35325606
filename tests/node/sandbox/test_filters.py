"""The filters of system calls: the table of numbers, and what the compiled program answers to every one of them."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.sandbox import calls, seccomp
from node.sandbox.seccomp import ALLOWED, REFUSED, Machine, Rule, Rules, program
from node.sandbox.syscalls import numbers

HEADERS = (
    (0, ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm/unistd_64.h")),
    (1, ("/usr/include/asm-generic/unistd.h",)),
)
MACHINES = {"x86-64": Machine(0xC000003E, numbers(0)), "aarch64": Machine(0xC00000B7, numbers(1))}


def supervisor() -> Rules:
    return calls.supervisor((1, 2))


ROOMS = (supervisor, calls.relay, calls.listening_relay, calls.template, calls.keyroom, calls.alone, calls.ceremony)
KILL, ERRNO, ALLOW = 0x80000000, 0x00050000, 0x7FFF0000


@pytest.mark.parametrize(("column", "places"), HEADERS, ids=list(MACHINES))
def test_the_table_is_that_of_the_kernels_headers(column: int, places: tuple[str, ...]) -> None:
    text = next((Path(place).read_text() for place in places if Path(place).exists()), None)
    if text is None:
        pytest.skip(f"no kernel headers here: {places[0]}")
    text = text.replace("__NR3264_", "__NR_")
    theirs = {name: int(number) for name, number in re.findall(r"#define __NR_(\w+)\s+(\d+)\n", text)}
    ours = numbers(column)
    common = ours.keys() & theirs.keys()
    assert len(common) > 250
    assert {name: ours[name] for name in common} == {name: theirs[name] for name in common}


def answer(code: bytes, audit: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """What the kernel's machine would return: the classic BPF of seccomp(2), instruction by instruction."""
    values = [argument & 0xFFFFFFFFFFFFFFFF for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    data = struct.pack("=IIQ6Q", number, audit, 0, *values)
    at, register = 0, 0
    while True:
        operation, yes, no, constant = struct.unpack_from("=HBBI", code, 8 * at)
        at += 1
        match operation:
            case 0x20:
                (register,) = struct.unpack_from("=I", data, constant)
            case 0x54:
                register &= constant
            case 0x05:
                at += constant
            case 0x15:
                at += yes if register == constant else no
            case 0x35:
                at += yes if register >= constant else no
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"operation {operation:#x}")


def expected(rules: Rules, name: str, arguments: tuple[int, ...]) -> int:
    rule = rules.get(name, REFUSED)
    for tests in rule.alternatives:
        if all((arguments[test.argument] & 0xFFFFFFFF & test.mask) in test.values for test in tests):
            return ALLOW
    return ERRNO | rule.error


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_the_program_answers_every_call_as_the_rules_say(machine: Machine, room: object) -> None:
    assert callable(room)
    rules = room()
    code = program(rules, machine)
    for name, number in machine.calls.items():
        for arguments in ((0,) * 6, (1, 1, 6, 0x20000000, 0, 0), (0x10000 | 0x10000000,) * 6, (2, 1, 0, 0, 0, 0)):
            assert answer(code, machine.audit, number, arguments) == expected(rules, name, arguments), name
    known = set(machine.calls.values())
    for number in set(range(600)) - known:
        assert answer(code, machine.audit, number) == ERRNO | errno.ENOSYS, "a call that is newer than the table"
    assert answer(code, machine.audit, 0x40000000 | min(known)) == KILL, "the same calls under other numbers"
    assert answer(code, machine.audit ^ 1, min(known)) == KILL, "another architecture's numbers"
    assert len(code) // 8 <= 4096, "the kernel takes no longer program"


@given(
    st.dictionaries(
        st.sampled_from(sorted(MACHINES["x86-64"].calls)),
        st.builds(
            Rule,
            st.lists(
                st.lists(
                    st.builds(
                        seccomp.Test,
                        st.integers(0, 5),
                        st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True).map(tuple),
                        st.sampled_from([0xFFFFFFFF, 3, 1]),
                    ),
                    max_size=3,
                ).map(tuple),
                max_size=3,
            ).map(tuple),
            st.sampled_from([errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP]),
        ),
        max_size=40,
    ),
    st.tuples(*[st.integers(0, 7)] * 6),
)
def test_any_rules_compile_to_what_they_say(rules: dict[str, Rule], arguments: tuple[int, ...]) -> None:
    machine = MACHINES["x86-64"]
    code = program(rules, machine)
    for name, number in machine.calls.items():
        assert answer(code, machine.audit, number, arguments) == expected(rules, name, arguments), name


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.__name__)
def test_every_name_in_a_rule_is_a_call(room: object) -> None:
    assert callable(room)
    assert room().keys() <= MACHINES["x86-64"].calls.keys() | MACHINES["aarch64"].calls.keys()


def test_no_room_may_leave_through_a_program_a_namespace_or_another_process() -> None:
    never = "execve execveat ptrace mount umount2 unshare setns pivot_root chroot bpf io_uring_setup process_vm_readv "
    never += "keyctl add_key perf_event_open userfaultfd init_module kexec_load open_by_handle_at pidfd_getfd"
    for room in ROOMS:
        assert not [name for name in never.split() if room().get(name, REFUSED) == ALLOWED], room.__name__
