"""Whatever has the secret key happens in a process of its own, which ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from keys.canonical import digest
from keys.ceremony import SECRET_KIND, secret_key_file
from keys.ckks import Opener, Sealer
from keys.errors import WardtreeError
from keys.plan import Plan
from keys.vault import FAST, open_file
from node.keyroom import in_keyroom, make_key
from tests.node.sandbox.kernel import needs_landlock


def _pid() -> int:
    return os.getpid()


def _fail() -> None:
    raise WardtreeError("the disk is full")


def _end() -> None:
    os._exit(3)


def test_it_is_another_process_and_its_errors_come_back() -> None:
    assert in_keyroom(_pid) != os.getpid()
    with pytest.raises(WardtreeError, match="the disk is full"):
        in_keyroom(_fail)
    with pytest.raises(WardtreeError, match="ended without an answer"):
        in_keyroom(_end)


def _look_around(home: Path) -> list[str]:
    """What the function may do, besides its work."""
    attempts: dict[str, Callable[[], object]] = {
        "read the password file": lambda: Path("/etc/passwd").read_bytes(),
        "write elsewhere": lambda: (home.parent / "copy").touch(),
        "open a socket": socket.socket,
        "start a process": os.fork,
        "write at home": lambda: (home / "made").touch(),
    }
    done = []
    for name, attempt in attempts.items():
        with suppress(OSError):
            attempt()
            done.append(name)
    return done


@needs_landlock
def test_the_room_is_confined(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert in_keyroom(_look_around, home, folders=[home]) == ["write at home"]


def test_a_key_pair_is_made_apart_and_named_by_its_public_key(tmp_path: Path) -> None:
    plan, out = Plan(), tmp_path / "public.key"
    (tmp_path / "home").mkdir()
    sealed = make_key(tmp_path / "home", "passphrase", plan, out, FAST)
    assert sealed == tmp_path / "home" / secret_key_file(digest(out.read_bytes()).hex())
    Sealer(plan, out.read_bytes())
    Opener(plan, open_file(sealed, SECRET_KIND, "passphrase"))
    with pytest.raises(WardtreeError, match="exists already"):
        make_key(tmp_path / "home", "passphrase", plan, out, FAST)
    assert list((tmp_path / "home").iterdir()) == [sealed], "no second key is left behind"
    other = make_key(tmp_path / "home", "passphrase", plan, tmp_path / "public-2.key", FAST)
    assert other != sealed, "the next version's key lies beside the old one"
