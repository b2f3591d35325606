"""The key room: the one process that ever has the secret key, and sees an opened total before all do.

It has no sockets but the one over which the template hands it the pipe of each round's enclave. It opens
each segment of each round at most once, whatever it is asked, and after a failed check nothing more: its
own ledger remembers both across restarts. SEAL's memory pool keeps what it held, so each round is opened
in a child of its own, which ends with the round.
"""

from __future__ import annotations

import hashlib
import math
import signal
import socket
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keys.canaries import round_key
from keys.canonical import digest
from keys.ceremony import SECRET_KIND, load_identity, secret_key_file
from keys.ckks import Opener, OpeningFailed, generate_keys
from keys.errors import WardtreeError
from keys.packing import Integers
from keys.plan import Plan
from keys.vault import KdfCost, open_file, refuse_existing, seal_file, write_public
from node.apart import NoAnswerError, call_apart
from node.channel import Channel, ChannelClosedError
from node.continuation import base_model
from node.course import Regime
from node.home import Home
from node.ledger import Ledger
from node.privacy.budget import BudgetError, PrivacyError
from node.process import name_process, see_end, spawn
from node.protocol.messages import EVALUATE
from node.sandbox import policy
from node.sandbox.enter import enter, narrow
from node.sandbox.machine import detect
from node.telemetry import Stopwatch
from node.update import open_total
from topology import quorum_met, tells_apart

if TYPE_CHECKING:
    from node.privacy.account import HospitalAccount

OWN_SECONDS = 60.0


def run_keyroom(relay: Channel, template: socket.socket, home: Home, passphrase: str) -> None:
    """Serve the relay until it ends: for every job of the template's enclaves one child."""
    name_process(f"keyroom {home.name}")
    try:
        box_secret = load_identity(home.path, passphrase).box_secret
        secret = open_file(home.secret_key, SECRET_KIND, passphrase)
        Opener(home.plan, secret)  # fail now, not in the first round
        policy.before_forks()
    except WardtreeError as error:
        relay.send("error", text=str(error))
        raise
    while True:
        request, descriptors, _, _ = socket.recv_fds(template, 16, 1)
        if not request:
            return
        enclave = Channel(descriptors[0], None)
        child = spawn(signal.SIGKILL, _serve_round, relay, enclave, template, home, secret, box_secret)
        code, peak_memory = see_end(child)
        if code < 0:
            raise SystemExit(1)  # it may have been killed in the middle of a word
        if code:
            relay.send("error", text="the key room could not go on; see its message above")
        else:
            relay.send("ended", peak_memory=peak_memory)
        enclave.close()


def make_key(home: Path, passphrase: str, plan: Plan, public_key: Path, cost: KdfCost) -> Path:
    """Make a key pair: the secret key sealed into the key holder's home, never elsewhere; gives its file.

    It happens in a process of its own, as everything does that has the secret key, so that no copy of it stays.

    Raises:
        WardtreeError: a file exists already, or cannot be written.
    """
    refuse_existing(public_key)
    sealed, public = in_keyroom(_make_key, home, passphrase, plan, cost, folders=[home])
    write_public(public_key, public)
    return Path(sealed)


def in_keyroom(
    function: Callable[..., Any], *arguments: Any, read: Iterable[Path] = (), folders: Iterable[Path] = ()
) -> Any:
    """Call a function that has the secret key in a process of its own, which then ends; gives its (plain) result.

    There is no manifest yet that says what may be missing, so the room has as many walls as this kernel makes.

    Args:
        read: files that it may read.
        folders: existing ones, where it may make, write and erase files.

    Raises:
        WardtreeError: as the function did.
    """
    room = policy.ceremony(read, folders)

    def inside(channel: Channel) -> Any:
        enter(room, detect(), channel.descriptors)
        name_process("keyroom")
        return function(*arguments)

    try:
        return call_apart(inside)
    except NoAnswerError as error:
        raise WardtreeError("the key room ended without an answer; see its message above") from error


def _make_key(home: Path, passphrase: str, plan: Plan, cost: KdfCost) -> tuple[str, bytes]:
    public, secret = generate_keys(plan)
    sealed = home / secret_key_file(digest(public).hex())
    seal_file(sealed, SECRET_KIND, secret, passphrase, cost)
    return str(sealed), public


def _serve_round(
    relay: Channel, enclave: Channel, template: socket.socket, home: Home, secret: bytes, box_secret: bytes
) -> None:
    """One round's openings, in order, until the relay says that the round is over."""
    narrow(policy.keyroom_child(), home.posture)
    template.close()
    name_process("keyroom child")
    openings = Openings(home)

    @cache
    def canary_key(name: str, round_: int, base: bytes) -> bytes:
        return round_key(box_secret, home.manifest.card(name).box_key, home.digest, round_, base)

    opener = Opener(home.plan, secret)
    while (request := _next_request(relay)) is not None:
        watch = Stopwatch()
        place = {"round": request["round"], "segment": request["segment"]}
        try:
            integers = _open(opener, canary_key, openings, enclave, request)
        except ChannelClosedError:
            relay.send("own lost", **place)
        except OpeningFailed:
            relay.send("refused", **place)
        except BudgetError:
            relay.send("withheld", **place, reason="privacy budget: nothing was opened")
        except PrivacyError:
            relay.send("withheld", **place, reason="too few shares of noise: nothing was opened")
        except WardtreeError as error:
            relay.send("error", text=str(error))
            raise
        else:
            relay.send("opened", **place, integers=integers, seconds=watch.seconds)


def _next_request(relay: Channel) -> dict[str, Any] | None:
    """The next segment to open; None when the round is over, or the relay is gone."""
    try:
        request = relay.receive()
    except ChannelClosedError:
        return None
    return request if request["kind"] == "open" else None


class Openings:
    """What this key has opened: one round's process keeps it, in a ledger that outlives it."""

    def __init__(self, home: Home) -> None:
        self._home, self._ledger, self._rules = home, Ledger(home.openings), home.rules
        opened = [entry for entry in self._ledger.entries if entry["what"] == "opening"]
        places = [(entry["round"], entry["segment"]) for entry in opened]
        self._evaluated = [(entry["round"], entry["listed"]) for entry in opened if self._is_evaluation(entry["round"])]
        self._count = len(places)
        # A process before us may have gone further in its last round than the disk knows: that round is used up.
        self._last = (max(places)[0], math.inf) if places else (-1, 0)
        self._retired = any(entry["what"] == "retired" for entry in self._ledger.entries)
        self._regime = Regime.of(home.study, home.plan, home.manifest.quorum)
        self._charged = (-1, 0)
        """The round that was charged last by this process, and how many integers it may open."""
        if self._regime.adds_noise:
            self._account = self._spent()

    def _spent(self) -> HospitalAccount:
        """The account of all that this key opened, and of what the model that this version goes on from has cost."""
        from node.privacy.account import releases_of

        base = base_model(self._home)
        account = self._regime.account(base.course if base else self._regime.begin())
        begins = base.round if base else -1
        for entry in self._ledger.entries:
            if entry.get("round", -1) > begins:
                account.charge(*releases_of(entry))
        return account

    def allows(self, round_: int, segment: int, listed: frozenset[str]) -> bool:
        """Whether this key may open this segment of this round over this set."""
        later = (round_, segment) > self._last
        used_up = self._count >= self._home.study.aggregation.max_openings
        allowed = later and not self._retired and not used_up and quorum_met(listed, self._home.manifest.quorum)
        return allowed and not (self._is_evaluation(round_) and self._tells_apart(round_, listed))

    def _is_evaluation(self, round_: int) -> bool:
        return self._rules.schedule.purpose(round_) == EVALUATE and not self._rules.near_sets

    def _tells_apart(self, round_: int, listed: frozenset[str]) -> bool:
        earlier = [names for number, names in self._evaluated if number != round_]
        return tells_apart(listed, earlier, self._rules.min_hidden)

    def charge(self, round_: int, listed: frozenset[str], place: slice, whole: int) -> None:
        """What a round will have published costs, all at once, before its first segment is opened: it is on the disk
        then, and stays charged whatever becomes of the round.

        Args:
            place: of this segment among the ``whole`` integers that each party sent.

        Raises:
            PrivacyError: fewer shares of noise are in this set than are guaranteed.
            BudgetError: it would pass the budget.
            OpeningFailed: the segment is none of those that were charged.
        """
        if place.start:
            if self._regime.adds_noise and (self._charged != (round_, whole) or place.stop > whole):
                raise OpeningFailed
            return
        if not self._regime.adds_noise:
            return
        arranged = self._regime.of_length(self._rules.schedule.purpose(round_), whole)
        if arranged is None or place.stop > whole:
            raise OpeningFailed  # nothing leaves this room uncharged
        arranged.check(listed)
        self._account.spend(*arranged.releases)
        self._ledger.append(**self._account.entry(round_, listed, arranged.releases))
        self._charged = (round_, whole)

    def record(self, round_: int, segment: int, listed: frozenset[str], ciphertexts: bytes) -> None:
        """To be done before the opening: its round is on the disk then, and can never be opened again."""
        write = self._ledger.append if round_ > self._last[0] else self._ledger.note
        digest = hashlib.sha256(ciphertexts).hexdigest()
        write(what="opening", round=round_, segment=segment, listed=sorted(listed), ciphertexts=digest)
        self._last, self._count = (round_, segment), self._count + 1

    def retire(self, round_: int) -> None:
        """The first failed check: this key opens nothing more."""
        self._ledger.append(what="retired", round=round_)
        self._retired = True


def _open(
    opener: Opener,
    canary_key: Callable[[str, int, bytes], bytes],
    openings: Openings,
    enclave: Channel,
    request: dict[str, Any],
) -> bytes:
    """Check the right to open, charge what it costs, write it down, open.

    Raises:
        BudgetError, PrivacyError: it would cost more privacy than is left, or promised.
        OpeningFailed: no right, or a check failed. The first failed check retires the key for good.
        ChannelClosedError: our own enclave's integers did not come.
    """
    round_, segment, others, length = (request[key] for key in ("round", "segment", "others", "length"))
    own = _own_integers(enclave, round_, segment) if request["own"] is not None else None
    listed = frozenset(others) | ({request["own"]} if own is not None else frozenset())
    if not openings.allows(round_, segment, listed):
        raise OpeningFailed
    start = segment * opener.plan.values_per_segment
    openings.charge(round_, listed, slice(start, start + length), request["whole"])
    openings.record(round_, segment, listed, request["ciphertexts"])
    try:
        keys = [canary_key(name, round_, request["base"]) for name in others]
        return open_total(opener, request["ciphertexts"], segment, keys, own, length)
    except OpeningFailed:
        openings.retire(round_)
        raise


def _own_integers(enclave: Channel, round_: int, segment: int) -> Integers:
    message = enclave.receive(OWN_SECONDS)
    if (message["round"], message["segment"]) != (round_, segment):
        raise ChannelClosedError
    return np.frombuffer(message["integers"], dtype="<i4").astype(np.int64)
