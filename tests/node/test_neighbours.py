"""What a node says of its manifest before anything else, and how another understands it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.neighbours import greeting, understand
from node.protocol.link import CREDIT, DATA, HELLO, Link, Wire
from tests.keys.test_succession import OLD, manifest

FIRST = manifest(OLD.values())
SECOND = manifest(OLD.values(), version=2, previous=FIRST.digest)


def test_a_greeting_is_understood() -> None:
    for each in (FIRST, SECOND):
        assert understand(greeting(each)) == (each.federation, each.version, each.digest)
    assert greeting(FIRST) != greeting(SECOND)


@given(st.binary(max_size=80))
def test_any_greeting_is_understood_or_none(greeting_: bytes) -> None:
    assert (understand(greeting_) is None) == (len(greeting_) != 56)


def test_only_a_hello_carries_a_greeting() -> None:
    link, other = Link(1, 4, b"ours"), Link(2, 4, b"ours")
    hello = link.hello()
    assert (hello.kind, hello.item) == (HELLO, (b"ours",))
    assert Wire.parse(hello.parts()) == hello
    _, replies = other.receive(hello)
    assert [(reply.kind, reply.item) for reply in replies] == [(HELLO, (b"ours",))]
    for kind, parts in ((HELLO, 0), (HELLO, 2), (CREDIT, 1), (DATA, 1)):
        assert Wire.parse(Wire(kind, 1, 2, 0, 0, 4, (b"x",) * parts).parts()) is None
