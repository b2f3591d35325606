"""The relay: the one process of a node with sockets, and the one that lives as long as the node.

It holds ciphertext, signatures, the public key and the current global model: never data, an update or a
secret key. It turns what happens on sockets, pipes and clocks into events for the round machine, and does
what the machine commands.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from keys.ceremony import PUBLIC_KEY, load_identity
from keys.ckks import CiphertextError, Sealer
from keys.errors import WardtreeError
from keys.identity import verify
from node import update
from node.channel import Channel, ChannelClosedError
from node.home import LEDGER, MODEL, Home, HomeError, Options
from node.ledger import Ledger
from node.process import name_process
from node.protocol import events as ev
from node.protocol.codec import Codec, Frame, RemoteProtocolError
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.link import Link, Wire
from node.protocol.messages import Partial
from node.protocol.party import Party
from node.rooms import Enclave, RoomError, Template, round_job
from node.sumcheck import fingerprint
from node.tasks.base import StatisticsSpec
from node.telemetry import Telemetry
from node.transport import REFUSED, Peer, Transport

IDENTITY_GRACE_SECONDS = 20.0
"""How long our parent may still hold a dead connection of ours before we believe in a second node."""


@dataclass
class Current:
    """What the relay holds of the round in hand."""

    round: int = -1
    purpose: str = ""
    enclave: Enclave | None = None
    pulls: int = 0
    segments: int = 0
    staged: list[bytes] = field(default_factory=list)
    began: float = 0.0


def run_relay(
    home: Home,
    passphrase: str,
    template: socket.socket,
    keyroom: Channel | None,
    telemetry: Telemetry,
    options: Options,
) -> None:
    """Run until the study ends; raises SystemExit with the node's exit code."""
    name_process(f"relay {home.name}")
    try:
        code = Relay(home, passphrase, template, keyroom, telemetry, options).run()
    except WardtreeError as error:
        telemetry.tell("stopped", error=str(error))
        code = 2
    raise SystemExit(code)


class Relay:
    """One node's loop. Events in from everywhere, commands out of the machine."""

    def __init__(
        self,
        home: Home,
        passphrase: str,
        template: socket.socket,
        keyroom: Channel | None,
        telemetry: Telemetry,
        options: Options,
    ) -> None:
        self.home, self.template, self.keyroom = home, Template(template), keyroom
        self.telemetry, self.options = telemetry, options
        self.identity = load_identity(home.path, passphrase)
        self.ledger = Ledger(home.path / LEDGER, self.identity.sign)
        _refuse_a_second_start(home, self.ledger)
        cards = home.manifest.cards
        self.codec = Codec(home.digest, home.roster, home.manifest.signing_keys, verify)
        self.sealer = Sealer(home.plan, (home.path / PUBLIC_KEY).read_bytes())
        machine = KeyHolder if home.is_key_holder else Contributor
        self.machine: Party = machine(home.name, home.tree, home.rules)
        parent = home.tree.parent.get(home.name)
        session = secrets.randbits(63) | 1
        neighbours = [*home.tree.children[home.name], *([parent] if parent else [])]
        self.links = {peer: Link(session, home.rules.window) for peer in neighbours}
        peers = {card.name: Peer(card.name, card.curve_key, card.endpoint) for card in cards}
        self.transport = Transport(
            self.identity.curve_secret,
            peers.values(),
            home.bind if home.tree.children[home.name] else None,
            peers[parent] if parent else None,
            self._refused,
        )
        self.parent = parent
        self.grid = update.Grid(home.study.aggregation.clip, home.plan)
        self.spec: StatisticsSpec | None = None
        self.model = update.Model(-1, np.zeros(0, np.float32))
        self.current = Current()
        self.timers: dict[str, float] = {}
        self.events: deque[ev.Event] = deque()
        self.exit_code: int | None = None
        self._identity_deadline: float | None = None

    # ---- the loop ---------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until the machine stops; gives the exit code."""
        self.ledger.append(what="started", manifest=self.home.manifest.digest, time=int(time.time()))
        if self.keyroom and self.keyroom.read is not None:
            self.transport.watch(self.keyroom.read)
        self.transport.watch(self.template.descriptor)
        self._start_enclave("prepare")
        while self.exit_code is None:
            messages, descriptors, connected = self.transport.poll(self._patience())
            if connected and self.parent:
                self._put(self.parent, [self.links[self.parent].hello()])
            for peer, parts in messages:
                self._take(peer, parts)
            if self.template.descriptor in descriptors:
                self.template.hear()
            if self.keyroom and self.keyroom.read in descriptors:
                self._hear_keyroom()
            enclave = self.current.enclave
            if enclave and enclave.descriptor in descriptors:
                self._hear_enclave(enclave)
            self._expire()
        self._end_enclave()
        self.transport.close()
        return self.exit_code

    def _happen(self, event: ev.Event) -> None:
        """Give an event, and what follows from it at once, to the machine."""
        self.events.append(event)
        while self.events and self.exit_code is None:
            for command in self.machine.handle(self.events.popleft()):
                self._do(command)

    def _patience(self) -> float | None:
        return max(0.0, min(self.timers.values()) - time.monotonic()) if self.timers else None

    def _expire(self) -> None:
        now = time.monotonic()
        for timer in [timer for timer, due in self.timers.items() if due <= now]:
            if self.timers.pop(timer, None) is None:
                continue  # an earlier one stopped it
            if timer == "identity" and self.parent:
                self._put(self.parent, [self.links[self.parent].hello()])
            else:
                self._happen(ev.Expired(timer))

    # ---- neighbours -------------------------------------------------------------------------------------

    def _take(self, peer: str, parts: list[bytes]) -> None:
        if parts == [REFUSED]:
            self._refused_as_second()
            return
        link, wire = self.links.get(peer), Wire.parse(parts)
        if link is None or wire is None:
            if parts != [b""]:  # the probe of a neighbour that heard a second node with our identity
                self._refused(peer, "a wire of a neighbour in the tree", "something else")
            return
        self._identity_deadline = None
        items, replies = link.receive(wire)
        self._put(peer, replies)
        for envelope, payload in items:
            try:
                frame = self.codec.decode(peer, envelope, payload)
            except RemoteProtocolError as error:
                self._refused(error.who, error.expected, error.came)
                self._put(peer, link.consumed())
            else:
                if isinstance(frame.message, Partial):
                    self._note_ciphertext(peer, frame.message)
                self._happen(ev.Received(peer, frame.sender, frame.recipient, frame.message, frame))
        self._happen(ev.Room(peer, link.pending))

    def _note_ciphertext(self, peer: str, partial: Partial) -> None:
        """The inbound log: every ciphertext that ever reached this node, and whose sum it claims to be."""
        self.telemetry.tell(
            "ciphertext",
            peer=peer,
            round=partial.round,
            segment=partial.segment,
            contributors=sorted(partial.contributors),
            bytes=len(partial.ciphertexts),
        )

    def _put(self, peer: str, wires: list[Wire]) -> None:
        for wire in wires:
            self.transport.send(peer, wire.parts())  # if it is lost, the link's next HELLO finds out

    def _send(self, peer: str, frame: Frame) -> None:
        self._put(peer, self.links[peer].send(frame.parts))

    def _refused(self, who: str, expected: str, came: str) -> None:
        self.telemetry.tell("dropped", who=who, expected=expected, came=came)

    def _refused_as_second(self) -> None:
        now = time.monotonic()
        self._identity_deadline = self._identity_deadline or now + IDENTITY_GRACE_SECONDS
        if now > self._identity_deadline:
            raise HomeError(
                f"{self.parent} already talks to another node with the identity of {self.home.name}; "
                "two nodes need two identities"
            )
        self.timers["identity"] = now + 1.0  # then we introduce ourselves again

    # ---- our own rooms ----------------------------------------------------------------------------------

    def _start_enclave(self, kind: str, **fields: Any) -> None:
        self._end_enclave()
        self.current.enclave = self.template.start(kind, **fields)
        self.current.pulls = 1
        self.transport.watch(self.current.enclave.descriptor)

    def _end_enclave(self) -> None:
        if self.current.enclave:
            if self.current.pulls:
                self.transport.unwatch(self.current.enclave.descriptor)
            self.current.enclave.end()
            self.current.enclave, self.current.pulls = None, 0

    def _hear_enclave(self, enclave: Enclave) -> None:
        """Take what the enclave says, but of its segments only as many as the machine asked for."""
        while self.current.enclave is enclave and self.current.pulls:
            try:
                message = enclave.channel.poll()
            except ChannelClosedError:
                self._end_enclave()
                self._lost("its enclave ended without a word")
                return
            if message is None:
                return
            self._handle_enclave(message)

    def _handle_enclave(self, message: dict[str, Any]) -> None:
        current = self.current
        match message["kind"]:
            case "prepared":
                self._end_enclave()
                self._prepared(message)
            case "trained":
                self._stage_time("train", message["seconds"])
                if message["fingerprint"] is not None:
                    self.telemetry.tell("fingerprint", round=current.round, value=message["fingerprint"])
                if self.home.is_key_holder:
                    self._pause_enclave()
                    self._happen(ev.Contributed(current.round))
            case "segment":
                self._stage_time("protect", message["seconds"])
                self._pause_enclave()
                current.segments += 1
                self._happen(ev.Sealed(current.round, message["segment"], message["ciphertexts"]))
            case "error":
                self._end_enclave()
                self._lost(message["text"])

    def _pause_enclave(self) -> None:
        """The machine's pull is served: leave the rest in the pipe, which holds the enclave back."""
        self.current.pulls -= 1
        if not self.current.pulls and self.current.enclave:
            self.transport.unwatch(self.current.enclave.descriptor)

    def _prepared(self, message: dict[str, Any]) -> None:
        if message["statistics"]:
            self.spec = StatisticsSpec(*message["statistics"])
        self.model = update.Model(-1, np.frombuffer(message["initial"], dtype="<f4").astype(np.float32))
        self.telemetry.tell("ready", parameters=self.model.parameters.size, examples=message["examples"])
        self._save_history()
        statistics = self.spec.length if self.spec else 0
        self._happen(ev.Ready(self.model.digest(self.home.digest), self.model.parameters.size, statistics))

    def _lost(self, why: str) -> None:
        """Our enclave gives nothing: before the first round that ends the node, in a round only our part."""
        if self.current.round < 0:
            raise RoomError(why)
        self.telemetry.tell("warning", text=f"round {self.current.round}: no update of our own: {why}")
        self._happen(ev.OwnLost(self.current.round))

    def _hear_keyroom(self) -> None:
        assert self.keyroom
        try:
            message = self.keyroom.poll()
        except ChannelClosedError as error:
            raise RoomError("the key room ended") from error
        match message or {}:
            case {"kind": "error", "text": text}:
                raise RoomError(text)
            case {"kind": "opened", "round": round_, "segment": segment, "integers": integers, "seconds": seconds}:
                self._stage_time("open", seconds)
                self._happen(ev.Opened(round_, segment, integers))
            case {"kind": "refused", "round": round_, "segment": segment}:
                self._happen(ev.OpeningRefused(round_, segment))

    # ---- commands ---------------------------------------------------------------------------------------

    def _do(self, command: ev.Command) -> None:
        match command:
            case ev.Send(peer, message, recipient):
                self._send(peer, self.codec.encode(message, self.home.name, recipient, self.identity.sign))
            case ev.Forward(peer, frame):
                self._send(peer, frame)
            case ev.Consume(peer):
                self._put(peer, self.links[peer].consumed())
            case ev.Drop(who, expected, came):
                self._refused(who, expected, came)
            case ev.Train(round_, purpose):
                self.current.round, self.current.purpose = round_, purpose
                self.current.began, self.current.segments = time.monotonic(), 0
                self._start_enclave("round", **round_job(self.model, round_, purpose, self._check_seed(round_)))
            case ev.PullSegment(_, segment):
                self._pull(segment)
            case ev.Merge(round_, segment, parts):
                self._merge(round_, segment, parts)
            case ev.Record(what, round_, segment, contributors):
                self.ledger.append(what=what, round=round_, segment=segment, contributors=sorted(contributors))
            case ev.OpenTotal():
                self._open(command)
            case ev.Stage(_, _, integers):
                self.current.staged.append(integers)
            case ev.Apply():
                self._apply(command)
            case ev.Wipe(round_):
                self._wipe(round_)
            case ev.SetTimer(timer, seconds):
                self.timers[timer] = time.monotonic() + seconds
            case ev.StopTimer(timer):
                self.timers.pop(timer, None)
            case ev.Report(what, round_, contributors):
                self.telemetry.tell("round", what=what, round=round_, contributors=sorted(contributors))
            case ev.Stop(error):
                self._stop(error)

    def _pull(self, segment: int) -> None:
        enclave = self.current.enclave
        if enclave and segment:  # the first segment is pulled by the start of the enclave
            self.current.pulls += 1
            self.transport.watch(enclave.descriptor)
            self._hear_enclave(enclave)  # it may lie in our buffer already

    def _merge(self, round_: int, segment: int, parts: tuple[bytes, ...]) -> None:
        began = time.perf_counter()
        try:
            total = update.merge(self.sealer, parts)
        except CiphertextError as error:
            # One of our children's parts is no ciphertext of this plan: nothing more goes up from here.
            self._refused("a child", "ciphertexts of this federation's plan", str(error))
            self.events.append(ev.OwnLost(round_))
            return
        self._stage_time("merge", time.perf_counter() - began)
        self.events.append(ev.Merged(round_, segment, total))

    def _open(self, command: ev.OpenTotal) -> None:
        assert self.keyroom
        lengths = self.machine.lengths[self.current.purpose]
        self.keyroom.send(
            "open",
            round=command.round,
            segment=command.segment,
            others=sorted(command.others),
            own=self.home.name if command.own else None,
            length=self.home.rules.segment_length(lengths, command.segment),
            ciphertexts=command.ciphertexts,
        )

    def _apply(self, command: ev.Apply) -> None:
        began = time.perf_counter()
        staged = self.current.staged[: command.segments]
        self._check_sums(command, staged)
        self.model = update.apply(
            self.model,
            command.round,
            command.purpose,
            staged,
            command.contributors,
            self.home.manifest.weights,
            self.spec,
            self.grid,
        )
        digest = self.model.digest(self.home.digest)
        self._stage_time("apply", time.perf_counter() - began)
        if command.state not in (None, digest):
            self._stop(
                f"round {command.round}: the model here differs from the key holder's after the same totals"
            )
            return
        self.ledger.append(
            what="closed",
            round=command.round,
            contributors=sorted(command.contributors),
            segments=command.segments,
            state=digest.hex(),
            left_out=self.home.name not in command.contributors,
            time=int(time.time()),
        )
        self._save_history()
        seconds = time.monotonic() - self.current.began
        self.telemetry.tell(
            "applied",
            round=command.round,
            state=digest.hex(),
            seconds=seconds,
            contributors=sorted(command.contributors),
        )
        self.events.append(ev.Applied(command.round, digest))

    def _wipe(self, round_: int) -> None:
        self._end_enclave()
        if self.keyroom and self.current.round == round_:
            self.keyroom.send("close")
        wiped = update.wipe(self.current.staged)
        self.current = Current()
        self.current.round = round_
        self.telemetry.tell("wiped", round=round_, bytes=wiped)

    def _stop(self, error: str | None) -> None:
        if error is None:
            _save_model(self.home.path / MODEL, self.model)
        traffic = self.transport.traffic
        self.telemetry.tell("traffic", sent=traffic.sent, received=traffic.received, parent=self.parent)
        self.telemetry.tell("stopped", error=error, state=self.model.digest(self.home.digest).hex())
        self.exit_code = 0 if error is None else 1

    # ---- the debug check, history, times ----------------------------------------------------------------

    def _check_seed(self, round_: int) -> bytes | None:
        allowed = "check-sums" in self.home.manifest.debug and round_ < len(self.options.check_seeds)
        return self.options.check_seeds[round_] if allowed else None

    def _check_sums(self, command: ev.Apply, staged: list[bytes]) -> None:
        seed = self._check_seed(command.round)
        if seed is not None:
            total = np.frombuffer(b"".join(staged), dtype="<i4")
            length = self.machine.lengths[command.purpose]
            value = fingerprint(seed, total, self.home.plan.segments(length))
            self.telemetry.tell("total", round=command.round, value=value)

    def _save_history(self) -> None:
        if self.options.history:
            _save_model(self.options.history / f"round-{self.model.round + 1:05}.npz", self.model)

    def _stage_time(self, stage: str, seconds: float) -> None:
        self.telemetry.tell("stage", stage=stage, round=self.current.round, seconds=seconds)


def _save_model(path: Path, model: update.Model) -> None:
    """The published model and nothing else, as plain arrays."""
    statistics = model.statistics if model.statistics is not None else np.zeros(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, parameters=model.parameters, statistics=statistics, parties=model.parties, round=model.round)


def load_model(path: Path) -> update.Model:
    """The inverse of what a node saves."""
    with np.load(path, allow_pickle=False) as arrays:
        statistics = arrays["statistics"] if arrays["statistics"].size else None
        return update.Model(int(arrays["round"]), arrays["parameters"], statistics, int(arrays["parties"]))


def _refuse_a_second_start(home: Home, ledger: Ledger) -> None:
    """A round that was ever aggregated is never aggregated again, so an interrupted study needs version k+1."""
    started = home.manifest.digest
    under = [entry["manifest"] for entry in ledger.entries if entry["what"] == "started"]
    rounds = ledger.last_round("closed")
    if under and under[-1] == started and rounds >= 0:
        raise HomeError(
            f"{home.path}: this node has already closed rounds up to {rounds} under this manifest; "
            "sign a new version to run again"
        )
