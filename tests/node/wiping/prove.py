"""What is left of a round in memory and on disks: ``scripts/prove_wipe``.

Four real nodes run a study with planted data. After round 1, while the enclaves of round 2 train, a scanner
reads all writable memory of every process of every node. The same scanner reads a process that does the same
round alone and wipes nothing: there it must find what it finds nowhere else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgpack
import numpy as np
import psutil
from tenseal import sealapi

from keys import canaries
from keys.canaries import round_key
from keys.ceremony import PUBLIC_KEY, SECRET_KIND, load_identity
from keys.ciphertexts import Scratch, chosen_ciphertext, load, make_context
from keys.packing import pack
from keys.plan import Plan
from keys.vault import open_file
from node.address import free_ports
from node.home import Home
from node.sandbox.machine import detect
from node.tasks.loader import task_digest
from node.update import Model
from tests.end_to_end.commands import at_descriptor
from tests.node.homes import KEY_HOLDER, NAMES, PASSPHRASE, Federation, make_federation
from tests.node.wiping.planted import update_of
from tests.node.wiping.scan import Windows, count, files_in, memory_of

ROOT = Path(__file__).parents[3]
TASK = "tests.node.wiping.planted:PlantedTask"
LENGTH = 200_000
DATA, SECRET = "the hospital's data", "the secret key"
ROOMS = {
    "node ": "supervisor",
    "wardtree log": "log",
    "relay ": "relay",
    "template ": "template",
    "enclave ": "enclave of round 2",
    "sealer ": "sealer of round 2",
    "keyroom": "key room",
}
"""Rooms, by how their processes are called."""
ALONE, DISK = "one process that wipes nothing", "folders, /tmp, /dev/shm"
SECONDS = 120.0

STUDY = """\
[study]
name = "planted"
rounds = 2
seed = 1

[task]
class = "{task}"

[task.options]
length = {length}

[aggregation]
clip = {clip}
"""


@dataclass
class Proof:
    """For each place the number of windows found, by form. ``windows``: how many there are of one whole copy."""

    windows: dict[str, int]
    found: dict[str, Counter[str]]
    processes: Counter[str]
    megabytes: float

    def wrong(self) -> list[str]:
        """What should not be there, or should and is not."""
        lines = []
        for form in self.windows:
            if not self.found[ALONE][form]:
                lines.append(f"{form}: the scanner does not find it in {ALONE}: it proves nothing")
            for place, counts in self.found.items():
                if place != ALONE and counts[form] and form not in ALLOWED.get(place, ()):
                    lines.append(f"{form}: {counts[form]} windows in: {place}")
        for place, forms in ALLOWED.items():
            lines += [f"{form}: not found in {place}, which has it" for form in forms if not self.found[place][form]]
        return lines


ALLOWED = {"key room": (SECRET,), "enclave of round 2": (DATA,)}
"""Who has what at the moment of the search, and must: the scanner reads these processes as well as the others."""


# ---- the nodes ------------------------------------------------------------------------------------------


def make_homes(folder: Path, length: int) -> Federation:
    """A federation on free ports, with planted data at every party, from a generator of the operating system."""
    study = STUDY.format(task=TASK, length=length, clip=float(Plan().max_value))
    gaps = sorted(detect().gaps & {"root"})
    ports = free_ports(len(NAMES))
    federation = make_federation(folder, ports=ports, study=study, task_digest=task_digest(TASK), sandbox_gaps=gaps)
    for name in NAMES:
        data = folder / f"{name}.f64"
        data.write_bytes(np.random.default_rng().uniform(0, 2**40, length).astype("<f8").tobytes())
        (federation.path(name) / "node.toml").write_text(f'[data]\nfile = "{data}"\n')
    return federation


@contextlib.contextmanager
def running(federation: Federation, program: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """``wardtree node`` for every home; what they say goes into files beside the homes."""
    nodes = {}
    for name in NAMES:
        with at_descriptor(PASSPHRASE) as (read,), log_of(federation, name).open("wb") as log:
            nodes[name] = subprocess.Popen(
                [sys.executable, "-m", program, "node", "--home", federation.path(name), "--passphrase-fd", str(read)],
                pass_fds=[read], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip
    try:
        yield nodes
    finally:
        for node in nodes.values():
            node.kill()
            node.wait()


def log_of(federation: Federation, name: str) -> Path:
    return federation.folder / f"{name}.log"


def entries(home: Home) -> list[dict[str, object]]:
    with contextlib.suppress(FileNotFoundError):
        return [json.loads(line)["entry"] for line in home.ledger.read_text().splitlines()]
    return []


def wait_for_round_2(federation: Federation, nodes: Mapping[str, subprocess.Popen[bytes]]) -> None:
    """Round 1 is wiped everywhere, by each node's own word, and round 2 has an enclave everywhere."""
    deadline = time.monotonic() + SECONDS
    homes = {name: federation.home(name) for name in NAMES}
    while True:
        told = [{(e["what"], e.get("round")) for e in entries(home)} for home in homes.values()]
        rooms = [{name.split()[0] for name in processes(node).values()} for node in nodes.values()]
        if all(("wiped", 1) in t and ("training", 2) in t for t in told) and all("enclave" in r for r in rooms):
            return
        if time.monotonic() > deadline or any(node.poll() is not None for node in nodes.values()):
            said = "".join(log_of(federation, name).read_text() for name in NAMES)
            raise SystemExit(f"prove_wipe: the nodes did not come to round 2:\n{said}")
        time.sleep(0.1)


def processes(node: subprocess.Popen[bytes]) -> dict[int, str]:
    """The name of every process of a node, by number."""
    found = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(node.pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                found[each.pid] = each.name()
    return found


def room_of(name: str) -> str:
    return next((room for prefix, room in ROOMS.items() if name.startswith(prefix)), name)


# ---- what is looked for ---------------------------------------------------------------------------------


def forms_of(data: bytes, plan: Plan, canary_key: bytes) -> dict[str, bytes]:
    """Round 1's update of one party in every form that it takes on its way."""
    values = update_of(np.frombuffer(data, "<f8"), 1)
    integers = values.astype(np.int64)
    encoder, plaintext = sealapi.CKKSEncoder(make_context(plan)), sealapi.Plaintext()
    scratch = Scratch(plan.poly_modulus_degree)
    slots, polynomials = b"", b""
    for number, part in enumerate(plan.segments(integers.size)):
        marks = canaries.digits(canary_key, plan, number, plan.ciphertexts(integers[part].size))
        packed = pack(integers[part], plan, marks)
        slots += packed.tobytes()
        for each in packed:
            encoder.encode(each.tolist(), float(plan.scale), plaintext)
            polynomials += scratch.words(plaintext).tobytes()
    return {
        DATA: data,
        "update, float64": values.tobytes(),
        "update, float32": values.astype("<f4").tobytes(),
        "update, 64-bit integers": integers.tobytes(),
        "update, 32-bit integers": integers.astype("<i4").tobytes(),
        "update, packed into slots": slots,
        "update, encoded polynomials": polynomials,
    }


def secret_forms(secret: bytes, plan: Plan) -> bytes:
    """The secret key's polynomial, as SEAL holds it."""
    context = make_context(plan)
    key, plaintext = sealapi.SecretKey(), sealapi.Plaintext()
    load(key, context, secret)
    sealapi.Decryptor(context, key).decrypt(chosen_ciphertext(plan, context, 0, 1, 1.0), plaintext)
    return Scratch(plan.poly_modulus_degree).words(plaintext).tobytes()


# ---- the proof ------------------------------------------------------------------------------------------


def prove(length: int = LENGTH, program: str = "node") -> Proof:
    """Run it all. ``program`` is the module that starts a node."""
    with tempfile.TemporaryDirectory(prefix="wardtree-") as name:
        folder, began = Path(name), time.time()
        federation = make_homes(folder, length)
        homes = {name: federation.home(name) for name in NAMES}
        plan = homes[KEY_HOLDER].plan
        secret = open_file(homes[KEY_HOLDER].secret_key, SECRET_KIND, PASSPHRASE)
        forms, keys = {}, {}
        for name, home in homes.items():
            identity = load_identity(home.path, PASSPHRASE)
            base = Model(-1, np.zeros(length, np.float32)).digest(home.digest)
            holder = home.manifest.card(KEY_HOLDER).box_key
            keys[name] = round_key(identity.box_secret, holder, home.digest, 1, base)
            forms[name] = forms_of((folder / f"{name}.f64").read_bytes(), plan, keys[name])
            forms[name][SECRET] = secret_forms(secret, plan)
        windows = {name: Windows.of(each) for name, each in forms.items()}
        proof = Proof({form: len(w) for form, w in windows[KEY_HOLDER].forms.items()}, {}, Counter(), 0.0)
        other = next(name for name in NAMES if name != KEY_HOLDER)
        job = {
            "plan": plan.to_dict(),
            "public": (homes[other].path / PUBLIC_KEY).read_bytes(),
            "secret": secret,
            "canary_key": keys[other],
            "data": str(folder / f"{other}.f64"),
        }
        _search_alone(proof, job, windows[other])
        with running(federation, program) as nodes:
            wait_for_round_2(federation, nodes)
            time.sleep(1.0)  # the enclaves of round 2 have read their data
            for name, node in nodes.items():
                for process, called in processes(node).items():
                    _search(proof, room_of(called), process, windows[name])
            for name in NAMES:
                (folder / f"{name}.f64.go").touch()
            codes = [node.wait(SECONDS) for node in nodes.values()]
        if any(codes):
            raise SystemExit(f"prove_wipe: the nodes ended with {codes}")
        proof.found[DISK] = Counter()
        places = [Path(each) for each in ("/tmp", "/var/tmp", "/dev/shm")]
        for name in NAMES:
            files = files_in(places, folder, began, [folder / f"{name}.f64" for name in NAMES])
            proof.found[DISK].update(count(files, windows[name]))
        return proof


def _search(proof: Proof, place: str, process: int, windows: Windows) -> None:
    size = 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for piece in memory_of(process):
            size += len(piece)
            yield piece

    proof.found.setdefault(place, Counter()).update(count(counted(), windows))
    proof.processes[place] += 1
    proof.megabytes += size / 1e6


def _search_alone(proof: Proof, job: dict[str, object], windows: Windows) -> None:
    packed = msgpack.packb(job)
    command = [sys.executable, "-m", "tests.node.wiping.one_process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(f"{len(packed)}\n".encode() + packed)
        process.stdin.flush()
        said = process.stdout.readline().decode()
        if not said.startswith("done"):
            raise SystemExit("prove_wipe: the process without the design failed")
        _search(proof, ALONE, process.pid, windows)


# ---- the table ------------------------------------------------------------------------------------------


def table(proof: Proof) -> str:
    """Markdown: a line a form, a column a place."""
    places = [ALONE, *[p for p in dict.fromkeys((*ROOMS.values(), DISK)) if p in proof.found]]
    heads = [f"{p} ({proof.processes[p]})" if proof.processes[p] > 1 else p for p in places]
    lines = [f"| windows of 64 bytes found | of | {' | '.join(heads)} |", "|---|" + "---:|" * (1 + len(places))]
    for form, most in proof.windows.items():
        cells = [f"{proof.found[place][form]:,}" for place in places]
        lines.append(f"| {form} | {most} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    arguments = argparse.ArgumentParser(prog="scripts/prove_wipe", description=__doc__)
    arguments.add_argument("--length", type=int, default=LENGTH, help="values in an update (default: %(default)s)")
    arguments.add_argument("--out", type=Path, help="write the table to this file as well")
    asked = arguments.parse_args()
    proof = prove(asked.length)
    wrong = proof.wrong()
    count_, size = sum(proof.processes.values()) - 1, proof.megabytes
    text = (
        f"# What is left of a round\n\nWritten by `scripts/prove_wipe`: Linux {platform.release()}, {detect().text}; "
        f"{len(NAMES)} nodes, updates of {asked.length:,} values. {HOW_TO_READ}\n\n{table(proof)}\n\n"
        f"{count_} processes of the nodes and the one without the design: {size:,.0f} MB of writable memory were read. "
        f"{'As it must be.' if not wrong else 'WRONG: ' + '; '.join(wrong)}\n"
    )
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    print(text)
    sys.exit(bool(wrong))


HOW_TO_READ = (
    "Searched while round 2 trains, for round 1's updates, each node's own in all of its processes. *of*: windows in "
    "one whole copy. The enclaves of round 2 must have the data, the key room must have the secret key: so the scanner "
    "does read processes that nobody else can. The first column is the same round in one process that wipes nothing."
)

if __name__ == "__main__":
    main()
