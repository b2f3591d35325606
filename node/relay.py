"""The relay: the one process of a node with sockets, and the one that lives as long as the node.

It holds ciphertext, signatures and the current global model: never data, an update or a key of the
encryption. It turns what happens on sockets, pipes and clocks into events for the round machine, and does
what the machine commands.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from keys import segments
from keys.canaries import round_key
from keys.ceremony import load_identity
from keys.errors import WardtreeError
from keys.segments import CiphertextError
from node import update
from node.carry import Carried
from node.channel import Channel, ChannelClosedError
from node.gauge import own_usage
from node.history import history_of
from node.home import Home, Options
from node.ledger import Ledger
from node.model_keeper import ModelKeeper
from node.neighbours import BEAT_SECONDS, Neighbours
from node.operate.observer import Observer
from node.process import ENDED_FROM_OUTSIDE, allow_descriptors, name_process
from node.protocol import events as ev
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.messages import TRAIN, Partial, Snapshot
from node.protocol.party import Party
from node.refusals import Refusals
from node.rooms import OwnEnclave, OwnKeyRoom, RoomEndedError, RoomError, Template, round_job
from node.sandbox import policy
from node.sandbox.enter import narrow
from node.spending import Spending
from node.telemetry import Stopwatch, Telemetry
from node.timers import Timers
from node.wiping import ENCLAVE, KEYROOM, PREPARE, Wiping

BEAT = "beat"
"""The one timer that is the relay's own and not the machine's."""

GONE_SECONDS = 5.0
"""How long the last round's processes, which are told to end, may take to do so."""


@dataclass
class Current:
    """The round in hand."""

    round: int = -1
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
    allow_descriptors()
    try:
        code = Relay(home, passphrase, template, keyroom, telemetry, options).run()
    except WardtreeError as error:
        telemetry.tell("stopped", error=str(error))
        code = ENDED_FROM_OUTSIDE if isinstance(error, RoomEndedError) else 2
    finally:
        telemetry.flush()
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
        self.home, self.telemetry = home, telemetry
        self.template, self.keyroom = Template(template), OwnKeyRoom(keyroom) if keyroom else None
        self.identity = load_identity(home.path, passphrase)
        self.ledger = Ledger(home.ledger, self.identity.sign)
        self.keeper = ModelKeeper(home, options, telemetry)
        self.carried = Carried()
        self.spending = Spending(self.ledger, telemetry)
        self.machine: Party = (KeyHolder if home.is_key_holder else Contributor)(home.name, home.placement, home.rules)
        self.refused = Refusals(self._tell_refused)
        self.neighbours = Neighbours(home, self.identity, self.refused)
        self.transport = self.neighbours.transport
        self.observer: Observer | None = None
        if options.status:
            self.observer = Observer(
                home,
                self.machine,
                self.ledger.entries,
                lambda: self.neighbours.heard_at,
                lambda: (self.keeper.figure_names, self.keeper.model.curve.tolist()),
            )
            telemetry.observer = self.observer.take
        narrow(policy.listening_relay(), home.posture)
        self.wiping = Wiping(self.ledger)
        self.enclave = OwnEnclave(self.template, self.transport)
        self.current = Current()
        self.timers = Timers()
        self.events: deque[ev.Event] = deque()
        self.exit_code: int | None = None

    # ---- the loop ---------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until the machine stops; gives the exit code."""
        posture = self.home.posture.text
        self.ledger.append(what="started", manifest=self.home.manifest.digest, posture=posture, time=int(time.time()))
        self.transport.watch(self.template.descriptor)
        if self.keyroom:
            self.transport.watch(self.keyroom.descriptor)
        self.telemetry.tell("usage", when="began", **asdict(own_usage()))
        self._start_enclave("prepare")
        self.timers.set(BEAT, BEAT_SECONDS)
        while self.exit_code is None:
            self.telemetry.flush()
            if self.observer:
                self.observer.write_if_due()
            messages, descriptors, connected = self.transport.poll(self.timers.patience)
            for peer in connected:
                self.neighbours.introduce(peer)
            for peer, parts in messages:
                for event in self.neighbours.take(peer, parts):
                    self._note(event)
                    self._happen(event)
            self._hear_rooms(descriptors)
            if self.enclave.is_readable(descriptors):
                self._hear_enclave()
            for timer in self.timers.expired():
                self._expire(timer)
        self.keeper.save()
        self.enclave.end()
        self._see_rooms_end()
        self.transport.close()
        return self.exit_code

    def _hear_rooms(self, readable: set[int]) -> None:
        if self.template.descriptor in readable:
            peak_memory = self.template.hear()
            if peak_memory is not None:
                self.wiping.ended(ENCLAVE, peak_memory)
        if self.keyroom and self.keyroom.descriptor in readable:
            self._hear_keyroom()

    def _see_rooms_end(self) -> None:
        """Nothing of the last round is left when this node says that it is done."""
        deadline = time.monotonic() + GONE_SECONDS
        with contextlib.suppress(RoomError, ChannelClosedError):  # one that is gone already holds nothing either
            if self.keyroom:
                self.keyroom.close()
            while self.wiping.waits and (left := deadline - time.monotonic()) > 0:
                self._hear_rooms(self.transport.poll(left)[1])

    def _happen(self, event: ev.Event) -> None:
        """Give an event, and what follows from it at once, to the machine."""
        self.events.append(event)
        while self.events and self.exit_code is None:
            for command in self.machine.handle(self.events.popleft()):
                self._do(command)

    def _expire(self, timer: str) -> None:
        if timer != BEAT:
            self._happen(ev.Expired(timer))
            return
        self.timers.set(BEAT, BEAT_SECONDS)
        self.refused.beat()
        if self.observer:
            self.observer.beat()
        for event in self.neighbours.beat():
            self.telemetry.tell("lost", peer=event.peer)
            self._happen(event)

    def _tell_refused(self, who: str, expected: str, came: str, times: int) -> None:
        self.telemetry.tell("dropped", who=who, expected=expected, came=came, times=times)

    def _note(self, event: ev.Event) -> None:
        """The inbound log: every ciphertext that ever reached this node, and whose sum it claims to be."""
        if isinstance(event, ev.Received) and isinstance(event.message, Partial):
            self.telemetry.tell(
                "ciphertext",
                peer=event.peer,
                round=event.message.round,
                segment=event.message.segment,
                contributors=sorted(event.message.contributors),
                bytes=len(event.message.ciphertexts),
            )
            self.wiping.held(event.message.round, len(event.message.ciphertexts))

    def _stage_time(self, stage: str, seconds: float) -> None:
        self.telemetry.tell("stage", stage=stage, round=self.current.round, seconds=seconds)

    # ---- our own enclave --------------------------------------------------------------------------------

    def _start_enclave(self, kind: str, **fields: Any) -> None:
        self.wiping.began(self.current.round, ENCLAVE)
        if self.keyroom and kind == "round":
            self.wiping.began(self.current.round, KEYROOM)
        self.enclave.start(kind, **fields)

    def _hear_enclave(self) -> None:
        for message in self.enclave.messages():
            self._handle_enclave(message)

    def _handle_enclave(self, message: dict[str, Any]) -> None:
        round_ = self.current.round
        match message["kind"]:
            case "initial":
                self.keeper.begin(message["parameters"], message["start"], message["values"])
            case "prepared":
                self.enclave.end()
                self.wiping.dropped(PREPARE, 0)
                self._get_ready(message)
            case "carried":
                self.carried.take(message["piece"])
            case "spent":
                self.spending.trained(message["entry"])
            case "trained":
                self._stage_time("train", message["seconds"])
                if message["fingerprints"] is not None:
                    self.telemetry.tell("fingerprints", round=round_, values=message["fingerprints"])
                if self.home.is_key_holder:
                    self.enclave.pause()
                    self._happen(ev.Contributed(round_))
            case "segment":
                self._stage_time("protect", message["seconds"])
                self.enclave.pause()
                self.wiping.held(round_, len(message["ciphertexts"]))
                self._happen(ev.Sealed(round_, message["segment"], message["ciphertexts"]))
            case "error":
                self.enclave.end()
                self._lost(message["text"])

    def _get_ready(self, message: dict[str, Any]) -> None:
        """Our data and first model are there: go on from what our ledger says that we did before."""
        self.keeper.prepared(message)
        past = history_of(self.ledger, self.home, self.neighbours.codec, self.keeper.digest)
        self.spending.account = past.account
        chain, resumed = self.keeper.resume(past.chain)
        self.telemetry.tell("ready", parameters=self.keeper.model.parameters.size, examples=message["examples"])
        if resumed and resumed.applied:
            self._tell_applied(resumed.round, self.keeper.digest, resumed.contributors)
        self._happen(
            ev.Ready(
                self.keeper.digest,
                self.keeper.lengths,
                self.keeper.size,
                self.keeper.largest,
                self.home.posture.text,
                chain,
                past.last_round,
                past.last_forwarded,
                self.keeper.begins,
                resumed,
                self.keeper.finished,
                past.evaluated,
            )
        )

    def _pull(self, segment: int) -> None:
        if segment:  # the first segment is pulled by the start of the enclave
            self.enclave.pull()
            self._hear_enclave()  # it may lie in our buffer already

    def _lost(self, why: str) -> None:
        """Our enclave gives nothing: before the first round that ends the node, in a round only our part."""
        if self.current.round < 0:
            raise RoomError(why)
        self.telemetry.tell("warning", text=f"round {self.current.round}: no update of our own: {why}")
        self._happen(ev.OwnLost(self.current.round))

    # ---- the key room -----------------------------------------------------------------------------------

    def _hear_keyroom(self) -> None:
        assert self.keyroom
        match self.keyroom.hear():
            case {"kind": "opened", "round": round_, "segment": segment, "integers": integers, "seconds": seconds}:
                self._stage_time("open", seconds)
                self._happen(ev.Opened(round_, segment, integers))
            case {"kind": "ended", "peak_memory": peak_memory}:
                self.wiping.ended(KEYROOM, peak_memory)
            case {"kind": "own lost", "round": round_}:
                self._lost("the key room did not get it")
            case {"kind": "refused" | "withheld", "round": round_, "segment": segment, **why}:
                self._happen(ev.OpeningRefused(round_, segment, why.get("reason", "")))

    # ---- commands ---------------------------------------------------------------------------------------

    def _do(self, command: ev.Command) -> None:
        match command:
            case ev.Send(peer, message, recipient):
                self.neighbours.send(peer, message, recipient)
            case ev.Forward(peer, frame):
                self.neighbours.forward(peer, frame)
            case ev.Consume(peer):
                self.neighbours.consume(peer)
            case ev.Drop(who, expected, came):
                self.refused(who, expected, came)
            case ev.Train(round_, purpose):
                self._train(round_, purpose)
            case ev.PullSegment(_, segment):
                self._pull(segment)
            case ev.Merge():
                self._merge(command)
            case ev.Record(what, round_, segment, contributors, posture):
                more = {"posture": posture} if posture else {}
                self.ledger.append(what=what, round=round_, segment=segment, contributors=sorted(contributors), **more)
            case ev.OpenTotal():
                assert self.keyroom
                self.keyroom.open(command, self.machine.base, self.home.name if command.own else None)
            case ev.Stage():
                self.keeper.stage(command)
            case ev.Apply():
                self._apply(command)
            case ev.Keep(published):
                self._keep(published)
            case ev.SendState(peer, part, parts):
                snapshot = Snapshot(self.keeper.digest, part, parts, self.keeper.part(part))
                self.neighbours.send(peer, snapshot, peer)
            case ev.Adopt():
                adopted = self.keeper.adopt(command)
                self.events.append(ev.Adopted(*self._state) if adopted else ev.NotAdopted())
            case ev.Dial(peer):
                self.neighbours.dial(peer)
            case ev.HangUp(peer):
                self.neighbours.hang_up(peer)
            case ev.Wipe(round_):
                self._wipe(round_)
            case ev.SetTimer(timer, seconds):
                self.timers.set(timer, seconds)
            case ev.StopTimer(timer):
                self.timers.stop(timer)
            case ev.Report(what, round_, contributors):
                self.telemetry.tell("round", what=what, round=round_, contributors=sorted(contributors))
            case ev.Stop(error):
                self._stop(error)

    def _train(self, round_: int, purpose: str) -> None:
        self.current.round, self.current.began = round_, time.monotonic()
        key_holder = self.home.manifest.card(self.home.tree.key_holder)
        canary_key = round_key(
            self.identity.box_secret, key_holder.box_key, self.home.digest, round_, self.machine.base
        )
        carried, seed = self.carried.pieces, self.keeper.check_seed(round_)
        terms = self.keeper.terms(purpose)
        job = round_job(
            self.keeper.model, terms, round_, purpose, seed, canary_key, self.carried.applied, self.spending.account
        )
        self._start_enclave("round", model=self.keeper.shared.descriptor, carried=carried, **job)
        if self.keyroom:
            self.keyroom.begin()

    def _merge(self, command: ev.Merge) -> None:
        watch = Stopwatch()
        plan, place = self.home.plan, (command.round, command.attempt, command.segment)
        ciphertexts = plan.ciphertexts(command.length)
        try:
            total = update.merge(plan, command.parts)
        except CiphertextError:
            total = b""
        if len(total) != segments.segment_bytes(plan, ciphertexts):
            self.events.append(ev.NotMerged(*place, segments.faulty(command.parts, plan, ciphertexts)))
            return
        self._stage_time("merge", watch.seconds)
        self.events.append(ev.Merged(*place, total))

    def _apply(self, command: ev.Apply) -> None:
        self.enclave.end()  # nothing of it counts in this round any more, and the model changes under it
        watch = Stopwatch()
        terms = self.keeper.terms(command.purpose)
        state = self.keeper.apply(command)
        self._stage_time("apply", watch.seconds)
        if command.state not in (None, state):
            self._stop(f"round {command.round}: the model here differs from the key holder's after the same totals")
            return
        self._tell_applied(command.round, state, command.contributors)
        self.spending.published(self.keeper, command.round, command.contributors, terms.releases)
        if command.purpose == TRAIN:
            applied = min(terms.length, command.segments * self.home.plan.values_per_segment)
            self.carried.settle(self.home.name in command.contributors, applied)
        self.events.append(ev.Applied(command.round, *self._state))

    @property
    def _state(self) -> tuple[bytes, int, bool, dict[str, int]]:
        """Our state as the machine knows it: digest, bytes, whether it ends the study, lengths of the next rounds."""
        return self.keeper.digest, self.keeper.size, self.keeper.finished, self.keeper.lengths

    def _tell_applied(self, round_: int, state: bytes, contributors: frozenset[str]) -> None:
        seconds = time.monotonic() - self.current.began if round_ == self.current.round else 0.0
        names = sorted(contributors)
        self.telemetry.tell("applied", round=round_, state=state.hex(), seconds=seconds, contributors=names)

    def _keep(self, published: ev.Published) -> None:
        """The key holder's signed word goes into the ledger: with it this node can prove its state to itself."""
        close = published.close
        frame = published.frame or self.neighbours.sign(close, "")
        contributors = sorted(close.contributors)
        self.ledger.append(
            what="closed",
            round=close.round,
            contributors=contributors,
            segments=close.segments,
            state=close.state.hex(),
            left_out=self.home.name not in contributors,
            frame=frame.envelope.hex(),
            time=int(time.time()),
        )
        self.keeper.kept()

    def _wipe(self, round_: int) -> None:
        self.enclave.end()
        self.carried.settle(False)
        if self.keyroom:
            self.keyroom.close()
        self.wiping.dropped(round_, self.keeper.wipe())

    def _stop(self, error: str | None) -> None:
        self.refused.sum_up()
        traffic = self.neighbours.traffic
        self.telemetry.tell("traffic", sent=traffic.sent, received=traffic.received, parent=self.machine.parent)
        self.telemetry.tell("usage", when="ended", **asdict(own_usage()))
        self.telemetry.tell("stopped", error=error, state=self.keeper.digest.hex())
        self.exit_code = 0 if error is None else 1
