"""The relay: the one process of a node with sockets, and the one that lives as long as the node.

It holds ciphertext, signatures and the current global model: never data, an update or a key of the
encryption. What happens on sockets, pipes and clocks it gives to the round machine as events, and it does what the
machine commands. What neighbours say becomes events in ``neighbours.py``, what the node's own rooms say in
``own_rooms.py``; the loop, every command, and what is done with the model and the ledger is here.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from dataclasses import asdict

from keys import segments
from keys.ceremony import load_identity
from keys.errors import WardtreeError
from keys.segments import CiphertextError
from node import update
from node.channel import Channel, ChannelClosedError
from node.gauge import own_usage
from node.home import Home, Options
from node.ledger import Ledger
from node.model_keeper import ModelKeeper
from node.neighbours import BEAT_SECONDS, Neighbours
from node.operate.observer import Observer
from node.own_rooms import OwnRooms
from node.process import ENDED_FROM_OUTSIDE, allow_descriptors, name_process
from node.protocol import events as ev
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.messages import TRAIN, Partial, Snapshot
from node.protocol.party import Party
from node.refusals import Refusals
from node.rooms import OwnKeyRoom, RoomEndedError, RoomError, Template
from node.sandbox import policy
from node.sandbox.enter import narrow
from node.telemetry import Stopwatch, Telemetry
from node.timers import Timers

BEAT = "beat"
"""The one timer that is the relay's own and not the machine's."""

GONE_SECONDS = 5.0
"""How long the last round's processes, which are told to end, may take to do so."""


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
        identity = load_identity(home.path, passphrase)
        self.ledger = Ledger(home.ledger, identity.sign)
        self.keeper = ModelKeeper(home, options, telemetry)
        self.machine: Party = (KeyHolder if home.is_key_holder else Contributor)(home.name, home.placement, home.rules)
        self.refused = Refusals(self._tell_refused)
        self.neighbours = Neighbours(home, identity, self.refused)
        self.transport = self.neighbours.transport
        self.rooms = OwnRooms(
            home,
            identity,
            Template(template),
            OwnKeyRoom(keyroom) if keyroom else None,
            self.transport,
            self.neighbours.codec,
            self.ledger,
            self.keeper,
            telemetry,
        )
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
        self.timers = Timers()
        self.events: deque[ev.Event] = deque()
        self.exit_code: int | None = None

    # ---- the loop ---------------------------------------------------------------------------------------

    def run(self) -> int:
        """Until the machine stops; gives the exit code."""
        posture = self.home.posture.text
        self.ledger.append(what="started", manifest=self.home.manifest.digest, posture=posture, time=int(time.time()))
        self.telemetry.tell("usage", when="began", **asdict(own_usage()))
        self.rooms.prepare()
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
            for event in self.rooms.hear(descriptors):
                self._happen(event)
            for timer in self.timers.expired():
                self._expire(timer)
        self.keeper.save()
        self._see_rooms_end()
        self.transport.close()
        return self.exit_code

    def _see_rooms_end(self) -> None:
        """Nothing of the last round is left when this node says that it is done."""
        deadline = time.monotonic() + GONE_SECONDS
        with contextlib.suppress(RoomError, ChannelClosedError):  # one that is gone already holds nothing either
            self.rooms.end()
            while self.rooms.are_ending and (left := deadline - time.monotonic()) > 0:
                for _ in self.rooms.hear(self.transport.poll(left)[1]):
                    pass  # the machine has stopped

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
            self.rooms.held(event.message.round, len(event.message.ciphertexts))

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
                self.rooms.train(round_, purpose, self.machine.base)
            case ev.PullSegment(_, segment):
                self.events.extend(self.rooms.pull(segment))
            case ev.Merge():
                self._merge(command)
            case ev.Record(what, round_, segment, contributors, posture):
                more = {"posture": posture} if posture else {}
                self.ledger.append(what=what, round=round_, segment=segment, contributors=sorted(contributors), **more)
            case ev.OpenTotal():
                self.rooms.open(command, self.machine.base)
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
                self.rooms.wipe(round_)
            case ev.SetTimer(timer, seconds):
                self.timers.set(timer, seconds)
            case ev.StopTimer(timer):
                self.timers.stop(timer)
            case ev.Report(what, round_, contributors):
                self.telemetry.tell("round", what=what, round=round_, contributors=sorted(contributors))
            case ev.Stop(error):
                self._stop(error)

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
        self.telemetry.took("merge", command.round, watch.seconds)
        self.events.append(ev.Merged(*place, total))

    def _apply(self, command: ev.Apply) -> None:
        self.rooms.end_enclave()  # the model changes under it
        watch = Stopwatch()
        terms = self.keeper.terms(command.purpose)
        state = self.keeper.apply(command)
        self.telemetry.took("apply", command.round, watch.seconds)
        if command.state not in (None, state):
            self._stop(f"round {command.round}: the model here differs from the key holder's after the same totals")
            return
        self.rooms.tell_applied(command.round, command.contributors)
        self.rooms.spending.published(self.keeper, command.round, command.contributors, terms.releases)
        if command.purpose == TRAIN:
            applied = min(terms.length, command.segments * self.home.plan.values_per_segment)
            self.rooms.carried.settle(self.home.name in command.contributors, applied)
        self.events.append(ev.Applied(command.round, *self._state))

    @property
    def _state(self) -> tuple[bytes, int, bool, dict[str, int]]:
        """Our state as the machine knows it: digest, bytes, whether it ends the study, lengths of the next rounds."""
        return self.keeper.digest, self.keeper.size, self.keeper.finished, self.keeper.lengths

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

    def _stop(self, error: str | None) -> None:
        self.refused.sum_up()
        traffic = self.neighbours.traffic
        self.telemetry.tell("traffic", sent=traffic.sent, received=traffic.received, parent=self.machine.parent)
        self.telemetry.tell("usage", when="ended", **asdict(own_usage()))
        self.telemetry.tell("stopped", error=error, state=self.keeper.digest.hex())
        self.exit_code = 0 if error is None else 1
