"""A node's own rooms in its rounds: jobs and totals in to them, and what they say as events for the round machine.

To the relay this is inwards what ``neighbours.py`` is outwards. ``rooms.py`` has the line to each single room.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from keys.canaries import round_key
from keys.identity import Identity
from node.carry import Carried
from node.history import history_of
from node.home import Home
from node.ledger import Ledger
from node.model_keeper import ModelKeeper
from node.protocol import events as ev
from node.protocol.codec import Codec
from node.rooms import OwnEnclave, OwnKeyRoom, RoomError, Template, Watcher, round_job
from node.spending import Spending
from node.telemetry import Telemetry
from node.wiping import ENCLAVE, KEYROOM, PREPARE, Wiping


class OwnRooms:
    """The template, the enclave of the round in hand, and the key room at the key holder.

    Attributes:
        spending: what their training has cost.
        carried: what the task, and its mask, keep from round to round, sealed.
    """

    def __init__(
        self,
        home: Home,
        identity: Identity,
        template: Template,
        keyroom: OwnKeyRoom | None,
        watcher: Watcher,
        codec: Codec,
        ledger: Ledger,
        keeper: ModelKeeper,
        telemetry: Telemetry,
    ) -> None:
        self._home, self._identity, self._codec = home, identity, codec
        self._ledger, self._keeper, self._telemetry = ledger, keeper, telemetry
        self._template, self._keyroom, self._watcher = template, keyroom, watcher
        self._enclave = OwnEnclave(template, watcher)
        self._wiping = Wiping(ledger)
        self.spending, self.carried = Spending(ledger, telemetry), Carried()
        self._round, self._began = -1, 0.0

    # ---- what they are to do ----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Once, before the first round: an enclave reads the data."""
        self._watcher.watch(self._template.descriptor)
        if self._keyroom:
            self._watcher.watch(self._keyroom.descriptor)
        self._wiping.began(PREPARE, ENCLAVE)
        self._enclave.start("prepare")

    def train(self, round_: int, purpose: str, base: bytes) -> None:
        """Start the round's enclave; at the key holder the key room gets a process for the round as well."""
        self._round, self._began = round_, time.monotonic()
        key_holder = self._home.manifest.card(self._home.tree.key_holder)
        canary_key = round_key(self._identity.box_secret, key_holder.box_key, self._home.digest, round_, base)
        carried, seed = self.carried.pieces, self._keeper.check_seed(round_)
        terms = self._keeper.terms(purpose)
        job = round_job(
            self._keeper.model, terms, round_, purpose, seed, canary_key, self.carried.applied, self.spending.account
        )
        self._wiping.began(round_, ENCLAVE)
        if self._keyroom:
            self._wiping.began(round_, KEYROOM)
        self._enclave.start("round", model=self._keeper.shared.descriptor, carried=carried, **job)
        if self._keyroom:
            self._keyroom.begin()

    def pull(self, segment: int) -> Iterator[ev.Event]:
        """Our enclave may hand over this segment, which may lie in our buffer already."""
        if segment:  # the first is pulled by the start of the enclave
            self._enclave.pull()
            yield from self._hear_enclave()

    def open(self, command: ev.OpenTotal, base: bytes) -> None:
        """Have the key room open a total."""
        assert self._keyroom
        self._keyroom.open(command, base, self._home.name if command.own else None)

    def end_enclave(self) -> None:
        """Nothing that it still has counts in this round."""
        self._enclave.end()

    def held(self, round_: int, ciphertexts: int) -> None:
        """So many bytes of ciphertext are at the relay."""
        self._wiping.held(round_, ciphertexts)

    def wipe(self, round_: int) -> None:
        """The round is over: what is left of it goes, and so do the processes that saw plaintext."""
        self.end()
        self.carried.settle(False)
        self._wiping.dropped(round_, self._keeper.wipe())

    def end(self) -> None:
        """Tell the round's processes to end."""
        self._enclave.end()
        if self._keyroom:
            self._keyroom.close()

    @property
    def are_ending(self) -> bool:
        """Whether a process that was told to end has not ended yet."""
        return self._wiping.waits

    # ---- what they say ----------------------------------------------------------------------------------

    def hear(self, readable: set[int]) -> Iterator[ev.Event]:
        """What came from those whose descriptors are readable.

        Raises:
            RoomError: one of them cannot go on, and the node not without it.
        """
        if self._template.descriptor in readable:
            peak_memory = self._template.hear()
            if peak_memory is not None:
                self._wiping.ended(ENCLAVE, peak_memory)
        if self._keyroom and self._keyroom.descriptor in readable:
            yield from self._from_keyroom(self._keyroom.hear())
        if self._enclave.is_readable(readable):
            yield from self._hear_enclave()

    def _hear_enclave(self) -> Iterator[ev.Event]:
        for message in self._enclave.messages():
            yield from self._from_enclave(message)

    def _from_enclave(self, message: dict[str, Any]) -> Iterator[ev.Event]:
        match message["kind"]:
            case "initial":
                self._keeper.begin(message["parameters"], message["start"], message["values"])
            case "prepared":
                self._enclave.end()
                self._wiping.dropped(PREPARE, 0)
                self._keeper.prepared(message)
                yield self._ready(message["examples"])
            case "carried":
                self.carried.take(message["piece"])
            case "spent":
                self.spending.trained(message["entry"])
            case "trained":
                self._telemetry.took("train", self._round, message["seconds"])
                if message["fingerprints"] is not None:
                    self._telemetry.tell("fingerprints", round=self._round, values=message["fingerprints"])
                if self._home.is_key_holder:
                    self._enclave.pause()
                    yield ev.Contributed(self._round)
            case "segment":
                self._telemetry.took("protect", self._round, message["seconds"])
                self._enclave.pause()
                self.held(self._round, len(message["ciphertexts"]))
                yield ev.Sealed(self._round, message["segment"], message["ciphertexts"])
            case "error":
                self._enclave.end()
                yield self._lost(message["text"])

    def _from_keyroom(self, message: dict[str, Any]) -> Iterator[ev.Event]:
        match message:
            case {"kind": "opened", "round": round_, "segment": segment, "integers": integers, "seconds": seconds}:
                self._telemetry.took("open", self._round, seconds)
                yield ev.Opened(round_, segment, integers)
            case {"kind": "ended", "peak_memory": peak_memory}:
                self._wiping.ended(KEYROOM, peak_memory)
            case {"kind": "own lost"}:
                yield self._lost("the key room did not get it")
            case {"kind": "refused" | "withheld", "round": round_, "segment": segment, **why}:
                yield ev.OpeningRefused(round_, segment, why.get("reason", ""))

    def _ready(self, examples: int) -> ev.Ready:
        """Our data and first model are there: go on from what our ledger says that we did before."""
        keeper = self._keeper
        past = history_of(self._ledger, self._home, self._codec, keeper.digest)
        self.spending.account = past.account
        chain, resumed = keeper.resume(past.chain)
        self._telemetry.tell("ready", parameters=keeper.model.parameters.size, examples=examples)
        if resumed and resumed.applied:
            self.tell_applied(resumed.round, resumed.contributors)
        return ev.Ready(
            keeper.digest,
            keeper.lengths,
            keeper.size,
            keeper.largest,
            self._home.posture.text,
            chain,
            past.last_round,
            past.last_forwarded,
            keeper.begins,
            resumed,
            keeper.finished,
            past.evaluated,
        )

    def _lost(self, why: str) -> ev.OwnLost:
        """Our enclave gives nothing: before the first round that ends the node, in a round only our part."""
        if self._round < 0:
            raise RoomError(why)
        self._telemetry.tell("warning", text=f"round {self._round}: no update of our own: {why}")
        return ev.OwnLost(self._round)

    def tell_applied(self, round_: int, contributors: frozenset[str]) -> None:
        """Our model is that after this round, and it took so long since our part in it began."""
        seconds = time.monotonic() - self._began if round_ == self._round else 0.0
        state, names = self._keeper.digest.hex(), sorted(contributors)
        self._telemetry.tell("applied", round=round_, state=state, seconds=seconds, contributors=names)
