"""Sealed files give back their secret to the passphrase alone; files are whole or not there."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import vault
from keys.canonical import FormatError, canonical, parse
from keys.errors import WardtreeError
from keys.vault import FAST, STANDARD, KdfCost, VaultError

LEAST = KdfCost(2, 19 * 2**20)  # the cheapest that is allowed: about 15 ms
SECRET = b"a planted secret"
SEALED = vault.seal("identity", SECRET, "correct horse", LEAST)
HEADER = parse(SEALED.split(b"\n")[1], 512)

scalars = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8"))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def depth(value: object) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


@given(values.filter(lambda value: depth(value) <= 8))
def test_canonical_bytes_give_the_value_back_and_are_stable(value: object) -> None:
    data = canonical(value)
    assert parse(data, len(data)) == value
    assert canonical(parse(data, len(data))) == data


def test_canonical_bytes_do_not_depend_on_order_and_are_pinned() -> None:
    assert canonical({"b": [1, True, None], "a": "å\n"}) == '{"a":"å\\n","b":[1,true,null]}'.encode()
    assert canonical({"a": 1, "b": 2}) == canonical({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [1.0, (1,), b"x", {1: 2}, [{"a": 0.5}], 2**53, -(2**53), "\ud800", {"\ud800": 1}])
def test_canonical_refuses_what_has_no_single_spelling(value: object) -> None:
    with pytest.raises(FormatError, match="expected"):
        canonical(value)


def test_canonical_and_parse_bound_the_nesting() -> None:
    nested: object = 0
    for _ in range(8):
        nested = [nested]
    assert parse(canonical(nested), 100) == nested
    nested = {"a": nested}
    with pytest.raises(FormatError, match="nesting"):
        canonical(nested)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b'{"a":1,"a":2}', "'a' twice"),
        (b'{"a":1,"\\u0061":2}', "'a' twice"),
        (b'{"a":{"b":1,"b":1}}', "'b' twice"),
        (b"1.5", "number"),
        (b"1e3", "number"),
        (b"NaN", "number"),
        (b"-Infinity", "number"),
        (b"9007199254740992", "2\\*\\*53"),
        (b"9" * 5000, "JSON"),
        (b"\xff", "JSON"),
        (b'\xef\xbb\xbf{"a":1}', "JSON"),
        (b'"\\ud800"', "surrogate"),
        (b'{"a":1} x', "JSON"),
        (b"", "JSON"),
        (b"[" * 9 + b"]" * 9, "nesting"),
        (b"[" * 9000 + b"]" * 9000, "nesting"),
        (b'{"a":' * 4000, "nesting"),
        (b" " * 20000, "JSON"),
        (b" " * 20001, "at most 20000 bytes, came 20001"),
    ],
)
def test_parse_refuses(data: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        parse(data, 20000)


@given(st.binary(max_size=60))
def test_parse_of_garbage_gives_a_value_or_a_format_error(data: bytes) -> None:
    try:
        value = parse(data, 60)
    except FormatError:
        return
    assert canonical(value) is not None


@settings(max_examples=10, deadline=None)
@given(secret=st.binary(max_size=300), passphrase=st.text(min_size=1, max_size=20))
def test_a_sealed_secret_comes_back(secret: bytes, passphrase: str) -> None:
    assert vault.unseal(vault.seal("any-kind", secret, passphrase, LEAST), "any-kind", passphrase) == secret


def test_two_seals_of_one_secret_share_nothing_but_the_words() -> None:
    other = vault.seal("identity", SECRET, "correct horse", LEAST)
    assert parse(other.split(b"\n")[1], 512)["salt"] != HEADER["salt"]  # type: ignore[index, call-overload]
    assert other[-len(SECRET) - 40 :] != SEALED[-len(SECRET) - 40 :]
    assert SECRET not in SEALED


def test_every_flipped_byte_is_refused() -> None:
    for place in range(len(SEALED)):
        changed = bytearray(SEALED)
        changed[place] ^= 1 << place % 8
        with pytest.raises(WardtreeError):
            vault.unseal(bytes(changed), "identity", "correct horse")


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 8 * len(SEALED) - 1))
def test_any_flipped_bit_is_refused(bit: int) -> None:
    changed = bytearray(SEALED)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WardtreeError):
        vault.unseal(bytes(changed), "identity", "correct horse")


@pytest.mark.parametrize("length", [0, 1, 17, 18, 60, len(SEALED) - 100, len(SEALED) - 17, len(SEALED) - 1])
def test_a_cut_file_is_refused(length: int) -> None:
    with pytest.raises(WardtreeError):
        vault.unseal(SEALED[:length], "identity", "correct horse")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"memory_bytes": 2**40}, "19 MiB to 1 GiB"),
        ({"memory_bytes": 2**20}, "19 MiB to 1 GiB"),
        ({"operations": 2**40}, "2 to 16"),
        ({"operations": 1}, "2 to 16"),
        ({"operations": True}, "expected an integer, came true or false"),
        ({"kdf": "scrypt"}, "'scrypt'"),
        ({"kind": "ckks-secret-key"}, "a sealed 'ckks-secret-key'"),
        ({"salt": "00"}, "salt: expected 32"),
        ({"more": 1}, "unknown field 'more'"),
    ],
)
def test_the_header_is_judged_before_the_kdf_runs(
    change: dict[str, object], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ran(*_: object) -> bytes:
        raise AssertionError("the KDF ran")

    monkeypatch.setattr("keys.vault.argon2id.kdf", ran)
    header = canonical({**HEADER, **change})  # type: ignore[dict-item]
    data = b"\n".join([b"wardtree-sealed/1", header, SEALED.split(b"\n", 2)[2]])
    with pytest.raises(WardtreeError, match=why):
        vault.unseal(data, "identity", "correct horse")


def test_wrong_passphrase_and_damage_are_told_apart_as_far_as_safe() -> None:
    with pytest.raises(VaultError, match="wrong passphrase, or the file was changed"):
        vault.unseal(SEALED, "identity", "wrong horse")
    damaged = SEALED[:-1] + bytes([SEALED[-1] ^ 1])
    with pytest.raises(VaultError, match="the passphrase is right, but"):
        vault.unseal(damaged, "identity", "correct horse")
    with pytest.raises(VaultError, match="wrong passphrase"):
        vault.unseal(damaged, "identity", "wrong horse")


def test_the_boxes_of_two_files_cannot_be_mixed() -> None:
    other = vault.seal("identity", b"another secret", "correct horse", LEAST)
    cut = len(SEALED) - len(SECRET) - 40
    with pytest.raises(VaultError, match="changed or damaged"):
        vault.unseal(SEALED[:cut] + other[cut:], "identity", "correct horse")


def test_a_passphrase_is_the_same_however_the_keyboard_composes_it() -> None:
    sealed = vault.seal("identity", SECRET, "v\u00e5rdtr\u00e4d", LEAST)
    assert vault.unseal(sealed, "identity", "va\u030ardtra\u0308d") == SECRET


def test_an_empty_passphrase_and_a_secret_too_large_are_refused() -> None:
    with pytest.raises(VaultError, match="passphrase"):
        vault.seal("identity", SECRET, "", LEAST)
    with pytest.raises(VaultError, match="at most"):
        vault.seal("identity", bytes(vault.MAX_SEALED), "correct horse", LEAST)


def test_the_presets_are_what_they_say() -> None:
    assert KdfCost(3, 256 * 2**20) == STANDARD
    assert KdfCost(2, 64 * 2**20) == FAST


def test_files_are_private_whole_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "home" / "identity.sealed"
    vault.seal_file(path, "identity", SECRET, "correct horse", LEAST)
    assert vault.open_file(path, "identity", "correct horse") == SECRET
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = path.read_bytes()
    with pytest.raises(VaultError, match=r"identity\.sealed: exists already"):
        vault.seal_file(path, "identity", b"other", "correct horse", LEAST)
    with pytest.raises(VaultError, match="exists already"):
        vault.write_private(path, b"other")
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
    with pytest.raises(VaultError, match=r"identity\.sealed: wrong passphrase"):
        vault.open_file(path, "identity", "wrong horse")


def test_replace_swaps_the_whole_file_and_follows_no_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"kept")
    link.symlink_to(target)
    with pytest.raises(VaultError, match="exists already"):
        vault.write_public(link, b"new")
    vault.write_public(link, b"new", replace=True)
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"kept", b"new", False)
    assert stat.S_IMODE(link.stat().st_mode) & 0o600 == 0o600


def test_a_dangling_link_counts_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(VaultError, match="exists already"):
        vault.write_private(tmp_path / "link", b"secret")
    assert not (tmp_path / "nowhere").exists()


def test_without_links_a_file_is_still_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # as FAT answers

    monkeypatch.setattr(os, "link", no_links)
    vault.write_public(tmp_path / "card.json", b"one")
    with pytest.raises(VaultError, match="exists already"):
        vault.write_public(tmp_path / "card.json", b"two")
    assert (tmp_path / "card.json").read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["card.json"]


def test_what_cannot_be_written_or_read_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(VaultError, match=r"file/inside: cannot be written: "):
        vault.write_private(tmp_path / "file" / "inside", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(VaultError, match="cannot be written"):
        vault.write_private(tmp_path / "folder", b"x", replace=True)
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("none", "No such file"), ("folder", "directory"), ("fifo", "expected a file")):
        with pytest.raises(VaultError, match=why):
            vault.read_bounded(tmp_path / name, 100)
    assert vault.read_bounded(tmp_path / "file", 5) == b"12345"
    with pytest.raises(VaultError, match="at most 4 bytes"):
        vault.read_bounded(tmp_path / "file", 4)
    assert sorted(os.listdir(tmp_path)) == ["fifo", "file", "folder"]


# ---- custody, replacement, erasure ----------------------------------------------------------------------


KEY = bytes(range(32))
SHARED = vault.seal_for_shares("identity", SECRET, KEY, "0123456789abcdef", 2)


def test_a_file_whose_key_is_in_shares_opens_with_that_key_alone() -> None:
    assert vault.unseal_with_shares(SHARED, "identity", KEY) == SECRET
    lock = vault.read_lock(SHARED)
    assert (lock.kind, lock.cost, lock.share_set, lock.needed) == ("identity", None, "0123456789abcdef", 2)
    assert vault.read_lock(SEALED).cost == LEAST
    for data, act, why in (
        (SHARED, lambda data: vault.unseal(data, "identity", "correct horse"), "2 share holders keep the key"),
        (SHARED, lambda data: vault.unseal_with_shares(data, "identity", bytes(32)), "wrong key from the shares"),
        (SHARED, lambda data: vault.unseal_with_shares(data, "other", KEY), "expected a sealed 'other'"),
        (SEALED, lambda data: vault.unseal_with_shares(data, "identity", KEY), "is under a passphrase"),
    ):
        with pytest.raises(VaultError, match=why):
            act(data)
    for place in range(len(SHARED)):
        changed = bytearray(SHARED)
        changed[place] ^= 1 << place % 8
        with pytest.raises(WardtreeError):
            vault.unseal_with_shares(bytes(changed), "identity", KEY)


def test_replacing_a_sealed_file_overwrites_the_old_one(tmp_path: Path) -> None:
    path, other_name = tmp_path / "sealed", tmp_path / "link"
    path.write_bytes(SEALED)
    path.chmod(0o600)
    other_name.hardlink_to(path)
    vault.replace_file(path, SHARED)
    assert path.read_bytes() == SHARED
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    left = other_name.read_bytes()
    assert len(left) == len(SEALED)
    assert not any(SEALED[at : at + 8] in left for at in range(len(SEALED) - 8))


def test_erasing_a_file_overwrites_and_removes_it(tmp_path: Path) -> None:
    path, other_name = tmp_path / "sealed", tmp_path / "link"
    data = SEALED + bytes(3 << 20)
    path.write_bytes(data)
    other_name.hardlink_to(path)
    vault.erase_file(path)
    assert not path.exists()
    left = other_name.read_bytes()
    assert len(left) == len(data)
    assert bytes(64) not in left, "to its very end"
    with pytest.raises(VaultError, match="cannot be erased: No such file"):
        vault.erase_file(path)
    with pytest.raises(VaultError, match="cannot be replaced: No such file"):
        vault.replace_file(path, SEALED)
    link = tmp_path / "symbolic"
    link.symlink_to(other_name)
    with pytest.raises(VaultError, match="cannot be erased"):
        vault.erase_file(link)
    assert other_name.read_bytes() == left, "a link leads nowhere"
