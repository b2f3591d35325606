"""One value, one byte string: the JSON that is signed, hashed, and read from strangers.

Keys sorted by code point, no spaces, UTF-8 without escapes that JSON does not need. No floats (two
programs print them differently), integers within 2**53 (RFC 7493), nesting bounded. Text is taken as
it is: nothing is normalised, so what was signed is what is shown.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

from keys.errors import WardtreeError

Json: TypeAlias = "bool | int | str | list[Json] | dict[str, Json] | None"

MAX_DEPTH = 8  # lists and objects inside each other
MAX_INTEGER = 2**53 - 1

_SURROGATE = re.compile("[\ud800-\udfff]")

_WORDS: Mapping[type, str] = {
    str: "text",
    int: "an integer",
    bool: "true or false",
    type(None): "null",
    list: "a list",
    dict: "an object",
}


class FormatError(WardtreeError):
    """Bytes that are not the JSON, or not the record, that was expected."""


def canonical(value: object) -> bytes:
    """The canonical bytes of str, int, bool, None, list and dict (with str keys), nested.

    Raises FormatError for any other type, an integer beyond 2**53, or nesting beyond MAX_DEPTH.
    """
    _check(value, MAX_DEPTH)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode("utf-8")


def digest(data: bytes) -> bytes:
    """SHA-256 of ``data``: 32 bytes."""
    return hashlib.sha256(data).digest()


def parse(data: bytes, limit: int) -> Json:
    """The value that ``data``, at most ``limit`` bytes of JSON, stands for.

    White space is free, everything else is strict: UTF-8 only, no key twice, no float, no NaN.
    Raises FormatError, and nothing else whatever the bytes are.
    """
    if len(data) > limit:
        raise FormatError(f"expected at most {limit} bytes, came {len(data)}")
    try:
        value: Json = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_key_twice,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except RecursionError:
        raise FormatError(f"expected at most {MAX_DEPTH} levels of nesting, came many more") from None
    except ValueError:  # not UTF-8, not JSON, or an integer of thousands of digits
        raise FormatError("expected JSON in UTF-8, came something else") from None
    _check(value, MAX_DEPTH)
    return value


def fields(value: object, what: str, kinds: Mapping[str, tuple[type, ...]]) -> dict[str, Any]:
    """``value``, if it is an object with exactly the fields of ``kinds``, each of one of its exact types.

    Raises FormatError, which begins with ``what`` and names the field.
    """
    if not isinstance(value, dict):
        raise FormatError(f"{what}: expected an object, came {_word(value)}")
    for problem, names in (("unknown", value.keys() - kinds.keys()), ("missing", kinds.keys() - value.keys())):
        if names:
            raise FormatError(f"{what}: {problem} field {', '.join(map(repr, sorted(names)))}")
    for name, types in kinds.items():
        if type(value[name]) not in types:  # exactly: a bool is no integer here
            expected = " or ".join(_WORDS[each] for each in types)
            raise FormatError(f"{what}: {name}: expected {expected}, came {_word(value[name])}")
    return value


def unhex(text: object, length: int, what: str) -> bytes:
    """The ``length`` bytes that ``text`` spells in lower-case hex: one spelling for each value.

    Raises FormatError, which begins with ``what`` and does not repeat the text.
    """
    if not isinstance(text, str) or not re.fullmatch(f"[0-9a-f]{{{2 * length}}}", text):
        raise FormatError(f"{what}: expected {2 * length} lower-case hex digits, came something else")
    return bytes.fromhex(text)


def hidden_letter(text: str) -> str | None:
    """The first character that could hide or reorder others on a terminal; line feed and tab could not."""
    suspects = (each for each in text if each not in "\n\t")
    return next((each for each in suspects if unicodedata.category(each) in {"Cc", "Cf", "Zl", "Zp"}), None)


def _check(value: object, depth: int) -> None:
    kind = type(value)
    if kind not in _WORDS:
        raise FormatError(f"expected text, integers, true, false, null, lists and objects, came {kind.__name__}")
    if depth == 0 and kind in (list, dict):
        raise FormatError(f"expected at most {MAX_DEPTH} levels of nesting, came more")
    if isinstance(value, dict):
        for key, each in value.items():
            if type(key) is not str:
                raise FormatError(f"expected text as a key, came {type(key).__name__}")
            _check(key, depth)
            _check(each, depth - 1)
    elif isinstance(value, list):
        for each in value:
            _check(each, depth - 1)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        raise FormatError("expected integers within 2**53, came a greater one")
    elif isinstance(value, str) and _SURROGATE.search(value):
        raise FormatError("expected text of whole characters, came half a surrogate pair")


def _no_key_twice(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise FormatError(f"expected each key once, came {twice!r} twice")
    return result


def _refuse_number(text: str) -> NoReturn:
    raise FormatError("expected integers only, came another kind of number")


def _word(value: object) -> str:
    return _WORDS.get(type(value), type(value).__name__)
