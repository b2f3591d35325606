"""Who a party is: three secret keys, and the public card that it signs itself.

The keys are apart because their protocols are: Ed25519 signs, one X25519 key is for CURVE on the wire,
the other for canaries and sealed boxes. Every signature is over ``wardtree/1/<domain> 0x00 <message>``, so
that what was signed for one purpose is never valid for another.
"""

import ipaddress
import re
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from nacl.bindings import crypto_scalarmult
from nacl.exceptions import BadSignatureError
from nacl.public import PrivateKey
from nacl.signing import SigningKey, VerifyKey

from keys.canonical import canonical, digest, fields, parse, unhex
from keys.errors import WardtreeError
from keys.words import words

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")  # for fullmatch
KEY_BYTES = 32
SIGNATURE_BYTES = 64
MAX_CARD = 4096  # bytes of a card's file
MAX_EXAMPLES = 2**20

_CARD_FORMAT = "wardtree-card/1"
_FINGERPRINT_FORMAT = "wardtree-fingerprint/1"
_CARD = {
    "format": (str,),
    "name": (str,),
    "signing_key": (str,),
    "curve_key": (str,),
    "box_key": (str,),
    "endpoint": (str, type(None)),
    "examples": (int,),
    "signature": (str,),
}
_IDENTITY_FORMAT = "wardtree-identity/1"
_IDENTITY = {
    "format": (str,),
    "name": (str,),
    "signing_seed": (str,),
    "curve_secret": (str,),
    "box_secret": (str,),
}
_DOMAIN = re.compile(r"[a-z0-9-]+")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]{2,45}\]")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_CURVE25519_PRIME = 2**255 - 19


class IdentityError(WardtreeError):
    """An identity, a card or a part of one that is not what it must be."""


def bucket(examples: int) -> int:
    """``examples`` rounded to the nearest power of two in log scale, 1 to 2**20; 0 (not declared) stays 0.

    Exact in integers: 2**k becomes 2**(k+1) above 2**k * sqrt(2). Raises IdentityError below 0.
    """
    if examples < 0:
        raise IdentityError(f"examples: expected 0 or more, came {examples}")
    if examples == 0:
        return 0
    floor = examples.bit_length() - 1
    nearest = floor + (examples * examples > 1 << (2 * floor + 1))
    return min(1 << nearest, MAX_EXAMPLES)


def check_name(name: str) -> str:
    """``name``, if it can be a party's. Raises IdentityError."""
    if not NAME.fullmatch(name):
        raise IdentityError(f"name: expected 1 to 40 of a-z, 0-9 and '-', a letter or digit first, came {name!r}")
    return name


def verify(public_key: bytes, domain: str, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is this Ed25519 key's over ``message`` in ``domain``; False for any bad input."""
    if len(public_key) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public_key).verify(_framed(domain, message), signature)
    except BadSignatureError:
        return False
    return True


@dataclass(frozen=True)
class Card:
    """A party's public half, signed by itself. A Card that exists has verified.

    ``endpoint`` is "host:port", or None for a party that can only dial out. ``examples`` is its declared
    number of examples, a power of two (``bucket``), 0 where not declared.
    """

    name: str
    signing_key: bytes
    curve_key: bytes
    box_key: bytes
    endpoint: str | None
    examples: int
    signature: bytes

    def __post_init__(self) -> None:
        """Raises IdentityError, which names the party and the field."""
        check_name(self.name)
        who = f"card of {self.name!r}"
        for what, key in (("curve_key", self.curve_key), ("box_key", self.box_key)):
            if not _is_sound(key):
                raise IdentityError(f"{who}: {what}: expected an X25519 public key, came a weak or odd one")
        if self.endpoint is not None and not _is_endpoint(self.endpoint):
            raise IdentityError(
                f"{who}: endpoint: expected host:port in lower case, port 1 to 65535, came {self.endpoint!r}"
            )
        if self.examples < 0 or bucket(self.examples) != self.examples:
            raise IdentityError(f"{who}: examples: expected 0 or a power of two up to 2**20, came {self.examples}")
        if not verify(self.signing_key, "card", canonical(self._body()), self.signature):
            raise IdentityError(f"{who}: its own signature is false")

    @property
    def keys(self) -> tuple[bytes, bytes, bytes]:
        """The public keys: signing, curve, box."""
        return self.signing_key, self.curve_key, self.box_key

    @property
    def fingerprint(self) -> tuple[str, ...]:
        """Seven words (77 bits) for the name and the three keys, to be read out over the telephone.

        The rest of a card may change and the words stay: the keys vouch for it. Enough against somebody who
        looks for other keys with these words: that takes 2**77 of them.
        """
        keys = [key.hex() for key in self.keys]
        return words(digest(canonical({"format": _FINGERPRINT_FORMAT, "keys": keys, "name": self.name})))

    def to_dict(self) -> dict[str, Any]:
        return {**self._body(), "signature": self.signature.hex()}

    def to_json(self) -> bytes:
        """Canonical bytes, at most MAX_CARD of them."""
        return canonical(self.to_dict())

    @classmethod
    def from_dict(cls, value: object) -> "Card":
        """Raises FormatError or IdentityError unless ``value`` is a card that verifies."""
        values = fields(value, "card", _CARD)
        if values["format"] != _CARD_FORMAT:
            raise IdentityError(f"card: format: expected {_CARD_FORMAT!r}, came {values['format']!r}")
        return cls(
            name=values["name"],
            signing_key=unhex(values["signing_key"], KEY_BYTES, "card: signing_key"),
            curve_key=unhex(values["curve_key"], KEY_BYTES, "card: curve_key"),
            box_key=unhex(values["box_key"], KEY_BYTES, "card: box_key"),
            endpoint=values["endpoint"],
            examples=values["examples"],
            signature=unhex(values["signature"], SIGNATURE_BYTES, "card: signature"),
        )

    @classmethod
    def from_json(cls, data: bytes) -> "Card":
        """Raises FormatError or IdentityError unless ``data`` is a card that verifies."""
        return cls.from_dict(parse(data, MAX_CARD))

    def _body(self) -> dict[str, Any]:
        return _card_body(self.name, self.keys, self.endpoint, self.examples)


@dataclass(frozen=True)
class Identity:
    """A party's secret half: an Ed25519 seed and two X25519 secret keys, 32 bytes each, never in a repr."""

    name: str
    signing_seed: bytes = field(repr=False)
    curve_secret: bytes = field(repr=False)
    box_secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        """Raises IdentityError for a bad name."""
        check_name(self.name)

    @classmethod
    def create(cls, name: str) -> "Identity":
        """A new identity, from the operating system's randomness."""
        return cls(name, *(secrets.token_bytes(KEY_BYTES) for _ in range(3)))

    def sign(self, domain: str, message: bytes) -> bytes:
        """64 bytes of Ed25519; ``domain`` is of a-z, 0-9 and "-" (anything else is a ValueError)."""
        return self._signing_key.sign(_framed(domain, message)).signature

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(self.signing_seed)  # a third of a signature's time

    def card(self, endpoint: str | None, examples: int) -> Card:
        """This identity's signed card, with ``examples`` rounded by ``bucket``. Raises IdentityError."""
        keys = (
            bytes(self._signing_key.verify_key),
            bytes(PrivateKey(self.curve_secret).public_key),
            bytes(PrivateKey(self.box_secret).public_key),
        )
        rounded = bucket(examples)
        signature = self.sign("card", canonical(_card_body(self.name, keys, endpoint, rounded)))
        return Card(self.name, *keys, endpoint, rounded, signature)

    def to_bytes(self) -> bytes:
        """All of it, secrets included: for the vault only."""
        return canonical(
            {
                "format": _IDENTITY_FORMAT,
                "name": self.name,
                "signing_seed": self.signing_seed.hex(),
                "curve_secret": self.curve_secret.hex(),
                "box_secret": self.box_secret.hex(),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Identity":
        """Raises FormatError or IdentityError, neither of which shows what came."""
        values = fields(parse(data, MAX_CARD), "identity", _IDENTITY)
        if values["format"] != _IDENTITY_FORMAT:
            raise IdentityError(f"identity: expected the format {_IDENTITY_FORMAT!r}, came another")
        secret = (
            unhex(values[name], KEY_BYTES, f"identity: {name}")
            for name in ("signing_seed", "curve_secret", "box_secret")
        )
        return cls(values["name"], *secret)


def _framed(domain: str, message: bytes) -> bytes:
    if not _DOMAIN.fullmatch(domain):
        raise ValueError(f"not a domain: {domain!r}")  # a 0x00 in it would let two purposes meet
    return b"wardtree/1/" + domain.encode() + b"\0" + message


def _card_body(name: str, keys: tuple[bytes, bytes, bytes], endpoint: str | None, examples: int) -> dict[str, Any]:
    signing, curve, box = (key.hex() for key in keys)
    return {
        "format": _CARD_FORMAT,
        "name": name,
        "signing_key": signing,
        "curve_key": curve,
        "box_key": box,
        "endpoint": endpoint,
        "examples": examples,
    }


def _is_sound(key: bytes) -> bool:
    """Whether ``key`` is an X25519 key in its one canonical spelling (else two unlike keys could be equal)
    and not of small order (else every shared secret with it is zero)."""
    if len(key) != KEY_BYTES or int.from_bytes(key, "little") >= _CURVE25519_PRIME:
        return False
    try:
        crypto_scalarmult(b"\x01" * KEY_BYTES, key)  # libsodium refuses when the result is zero
    except RuntimeError:
        return False
    return True


def _is_endpoint(text: str) -> bool:
    host, _, port = text.rpartition(":")
    if not (_HOST.fullmatch(host) and _PORT.fullmatch(port)) or int(port) > 65535:
        return False
    return not host.startswith("[") or _is_ipv6(host[1:-1])


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True
