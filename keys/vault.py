"""Secrets at rest, and files that are either whole or not there.

A sealed file is two lines of text and two AEAD boxes (XChaCha20-Poly1305, random nonces)::

    wardtree-sealed/1
    {"kdf":"argon2id","kind":"identity","memory_bytes":...,"operations":...,"salt":"..."}
    box(key = argon2id(passphrase, salt), text = data key)     72 bytes
    box(key = data key,                   text = secret)       40 bytes more than the secret

Both boxes have the two lines as associated data. Where officers keep the key, the header is
``{"kdf":"shares","kind":...,"needed":m,"set":"..."}`` and the first box is under the 32 bytes that they
hold in shares. A new passphrase, a higher cost or another custody means a new file, all of it under new keys.
"""

import errno
import os
import secrets
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import Aead

from keys.canonical import canonical, fields, parse, unhex
from keys.errors import WardtreeError

MAX_SEALED = 16 * 2**20  # bytes of a sealed file; a CKKS secret key at N=8192 is below 1 MiB
MAX_HEADER = 512  # bytes

_MAGIC = b"wardtree-sealed/1"
_HEADERS = {
    "argon2id": {"kdf": (str,), "kind": (str,), "memory_bytes": (int,), "operations": (int,), "salt": (str,)},
    "shares": {"kdf": (str,), "kind": (str,), "needed": (int,), "set": (str,)},
}
SET_BYTES = 8
_WRAPPED = Aead.NONCE_SIZE + Aead.KEY_SIZE + Aead.MACBYTES


class VaultError(WardtreeError):
    """A file that cannot be read, written or opened."""


@dataclass(frozen=True)
class KdfCost:
    """What one guess at a passphrase costs: argon2id passes over ``memory_bytes`` of memory.

    The bounds hold for files as well, before the KDF runs: below them guessing is too cheap (RFC 9106
    and OWASP's least, 2 passes over 19 MiB), above them a forged header could stop the machine.
    """

    operations: int
    memory_bytes: int

    def __post_init__(self) -> None:
        if not 2 <= self.operations <= 16:
            raise VaultError(f"argon2id: expected 2 to 16 operations, came {self.operations}")
        if not 19 * 2**20 <= self.memory_bytes <= 2**30:
            raise VaultError(f"argon2id: expected 19 MiB to 1 GiB of memory, came {self.memory_bytes} bytes")


STANDARD = KdfCost(argon2id.OPSLIMIT_MODERATE, argon2id.MEMLIMIT_MODERATE)  # 256 MiB, about 0.5 s
FAST = KdfCost(argon2id.OPSLIMIT_INTERACTIVE, argon2id.MEMLIMIT_INTERACTIVE)  # 64 MiB, about 0.07 s


@dataclass(frozen=True)
class Lock:
    """What a sealed file says of itself, before it is opened.

    Attributes:
        kind: what is in it.
        cost: of a guess at its passphrase; None where officers hold its key.
        salt: 16 bytes for argon2id, b"" where officers hold its key.
        share_set: the set of shares that gives its key, lower-case hex; None under a passphrase.
        needed: how many shares of the set it takes; 0 under a passphrase.
    """

    kind: str
    cost: KdfCost | None
    salt: bytes = b""
    share_set: str | None = None
    needed: int = 0


def seal(kind: str, secret: bytes, passphrase: str, cost: KdfCost = STANDARD) -> bytes:
    """``secret`` as the bytes of a sealed file that says it is a ``kind``.

    Raises VaultError for an empty passphrase, too little memory for ``cost``, or a secret too large.
    """
    salt = secrets.token_bytes(argon2id.SALTBYTES)
    header = {"kdf": "argon2id", "memory_bytes": cost.memory_bytes, "operations": cost.operations, "salt": salt.hex()}
    return _seal(header | {"kind": kind}, secret, _wrapping_box(passphrase, salt, cost))


def seal_for_shares(kind: str, secret: bytes, wrapping_key: bytes, share_set: str, needed: int) -> bytes:
    """As ``seal``, under a key of 32 bytes that officers hold in shares instead of a passphrase."""
    header = {"kdf": "shares", "kind": kind, "needed": needed, "set": share_set}
    return _seal(header, secret, Aead(wrapping_key))


def unseal(data: bytes, kind: str, passphrase: str) -> bytes:
    """The secret in the sealed file ``data``, which must be a ``kind``.

    Raises VaultError or FormatError. A wrong passphrase and a changed first box look the same, as they
    must; damage behind the first box is told, for who sees that had the passphrase.
    """
    lock, head, boxes = _parts(data, kind)
    if lock.cost is None:
        raise VaultError(
            f"{lock.needed} share holders keep the key of this file (set {lock.share_set}): they release their shares, "
            "and `wardtree ceremony recombine` puts it under a passphrase again"
        )
    return _unseal(head, boxes, _wrapping_box(passphrase, lock.salt, lock.cost), "passphrase")


def unseal_with_shares(data: bytes, kind: str, wrapping_key: bytes) -> bytes:
    """As ``unseal``, for a file of ``seal_for_shares``. Raises VaultError or FormatError."""
    lock, head, boxes = _parts(data, kind)
    if lock.cost is not None:
        raise VaultError("this file is under a passphrase, not in the custody of share holders")
    return _unseal(head, boxes, Aead(wrapping_key), "key from the shares")


def read_lock(data: bytes) -> Lock:
    """What the sealed file ``data`` says of itself. Raises VaultError or FormatError."""
    lock, _, _ = _parts(data, None)
    return lock


def seal_file(path: Path, kind: str, secret: bytes, passphrase: str, cost: KdfCost = STANDARD) -> None:
    """Seal ``secret`` into the new file ``path`` (0600). Raises VaultError; never overwrites."""
    refuse_existing(path)  # before the slow part; the write below refuses for certain
    with naming(path):
        data = seal(kind, secret, passphrase, cost)
    write_private(path, data)


def open_file(path: Path, kind: str, passphrase: str) -> bytes:
    """The secret in the sealed file ``path``, which must be a ``kind``. Raises as ``unseal`` does."""
    data = read_bounded(path, MAX_SEALED)
    with naming(path):
        return unseal(data, kind, passphrase)


def replace_file(path: Path, data: bytes) -> None:
    """Put the sealed ``data`` in the place of the sealed file ``path``, and overwrite what was there.

    Whole or not at all; the old file's wrapped key is overwritten only when the new file is in its place.
    Raises VaultError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise VaultError(f"{path}: cannot be replaced: {error.strerror}") from error
    try:
        write_private(path, data, replace=True)
        _overwrite(descriptor, path)
    finally:
        os.close(descriptor)


def erase_file(path: Path) -> None:
    """Crypto-erasure of a sealed file: its wrapped key is overwritten first, then all of it, then it is removed.

    What was in it is lost with the wrapped key, whatever a disk keeps of the rest; a copy that was made
    before is another file. Raises VaultError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            _overwrite(descriptor, path)
        finally:
            os.close(descriptor)
        path.unlink()
        _sync_folder(path.parent)
    except OSError as error:
        raise VaultError(f"{path}: cannot be erased: {error.strerror}") from error


def write_private(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write ``path`` (0600, a missing folder 0700) whole or not at all. Raises VaultError if it exists,
    unless ``replace``, or if it cannot be written."""
    _write(path, data, 0o600, 0o700, replace)


def write_public(path: Path, data: bytes, *, replace: bool = False) -> None:
    """As ``write_private``, for a file that everyone may read (0644)."""
    _write(path, data, 0o644, 0o755, replace)


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of the regular file ``path``, at most ``limit`` of them. Raises VaultError."""
    try:
        # O_NONBLOCK: opening a FIFO that somebody put there must not wait for its writer.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise VaultError(f"{path}: expected a file, came something else")
            data = file.read(limit + 1)
    except OSError as error:
        raise VaultError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > limit:
        raise VaultError(f"{path}: expected at most {limit} bytes, came more")
    return data


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it; the class of the error stays."""
    try:
        yield
    except WardtreeError as error:
        raise type(error)(f"{path}: {error}") from error


def _seal(header: dict[str, object], secret: bytes, box: Aead) -> bytes:
    if len(secret) > MAX_SEALED - 4096:  # or nothing could open it again
        raise VaultError(f"expected a secret of at most {MAX_SEALED - 4096} bytes, came {len(secret)}")
    head = _head(canonical(header))
    data_key = secrets.token_bytes(Aead.KEY_SIZE)
    return head + box.encrypt(data_key, head) + Aead(data_key).encrypt(secret, head)


def _unseal(head: bytes, boxes: bytes, box: Aead, opener: str) -> bytes:
    try:
        data_key = box.decrypt(boxes[:_WRAPPED], head)
    except CryptoError:
        raise VaultError(f"wrong {opener}, or the file was changed") from None
    try:
        return Aead(data_key).decrypt(boxes[_WRAPPED:], head)
    except CryptoError:
        raise VaultError(f"the {opener} is right, but the file was changed or damaged") from None


def _parts(data: bytes, kind: str | None) -> tuple[Lock, bytes, bytes]:
    """What a sealed file says of itself, its two lines, its two boxes."""
    magic, _, rest = data.partition(b"\n")
    if magic != _MAGIC:
        raise VaultError(f"expected a sealed file ({_MAGIC.decode()}), came something else")
    header, _, boxes = rest.partition(b"\n")
    values = parse(header, MAX_HEADER)
    kdf = values.get("kdf") if isinstance(values, dict) else None
    if not isinstance(kdf, str) or kdf not in _HEADERS:
        raise VaultError(f"sealed header: kdf: expected one of {', '.join(_HEADERS)}, came {kdf!r}")
    checked = fields(values, "sealed header", _HEADERS[kdf])
    if kind is not None and checked["kind"] != kind:
        raise VaultError(f"expected a sealed {kind!r}, came a sealed {checked['kind']!r}")
    if kdf == "argon2id":
        salt = unhex(checked["salt"], argon2id.SALTBYTES, "sealed header: salt")
        lock = Lock(checked["kind"], KdfCost(checked["operations"], checked["memory_bytes"]), salt)
    else:
        unhex(checked["set"], SET_BYTES, "sealed header: set")
        lock = Lock(checked["kind"], None, share_set=checked["set"], needed=checked["needed"])
    if len(boxes) < _WRAPPED + Aead.NONCE_SIZE + Aead.MACBYTES:
        raise VaultError("the sealed file is cut short")
    return lock, _head(header), boxes


def _head(header: bytes) -> bytes:
    return _MAGIC + b"\n" + header + b"\n"


def _wrapping_box(passphrase: str, salt: bytes, cost: KdfCost) -> Aead:
    if not passphrase:
        raise VaultError("expected a passphrase, came an empty one")
    # NFC: one keyboard sends "å" as one character, another as two.
    text = unicodedata.normalize("NFC", passphrase).encode("utf-8", "surrogatepass")
    try:
        return Aead(argon2id.kdf(Aead.KEY_SIZE, text, salt, cost.operations, cost.memory_bytes))
    except RuntimeError:
        raise VaultError(f"argon2id: cannot get {cost.memory_bytes >> 20} MiB of memory") from None


def _write(path: Path, data: bytes, mode: int, folder_mode: int, replace: bool) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        path.parent.mkdir(folder_mode, parents=True, exist_ok=True)
        descriptor = os.open(temporary, flags, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                temporary.rename(path)
            else:
                _put_new(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise VaultError(f"{path}: cannot be written: {error.strerror}") from error


def _overwrite(descriptor: int, path: Path) -> None:
    """Overwrite a sealed file in place: the two lines and the wrapped key, onto the disk; then everything."""
    size = os.fstat(descriptor).st_size
    first = min(size, len(_MAGIC) + 1 + MAX_HEADER + 1 + _WRAPPED)  # at least up to the end of the first box
    try:
        for length in (first, size):
            for start in range(0, length, 1 << 20):
                data = secrets.token_bytes(min(1 << 20, length - start))
                if os.pwrite(descriptor, data, start) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
    except OSError as error:
        raise VaultError(f"{path}: cannot be overwritten: {error.strerror}") from error


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _put_new(temporary: Path, path: Path) -> None:
    """Give ``temporary`` its name, unless something has it: a link refuses where a rename overwrites."""
    try:
        path.hardlink_to(temporary)
    except FileExistsError:
        refuse_existing(path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP):
            raise
        refuse_existing(path)  # a memory stick's FAT has no links: look, then rename
        temporary.rename(path)


def refuse_existing(path: Path) -> None:
    """Raises VaultError if there is anything of this name."""
    if os.path.lexists(path):
        raise VaultError(f"{path}: exists already, and is never overwritten")


def write_all(folder: Path, files: Mapping[str, bytes]) -> tuple[Path, ...]:
    """Write public files by name, or none if one of them exists; gives their paths. Raises VaultError."""
    for name in files:
        refuse_existing(folder / name)
    for name, data in files.items():
        write_public(folder / name, data)
    return tuple(folder / name for name in files)
