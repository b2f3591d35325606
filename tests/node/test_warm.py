"""The warm process of a local run: templates forked from it share what they import, and end with their relays."""

from __future__ import annotations

import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from node.home import Home
from node.nursery import start_nursery
from node.process import reap
from node.rooms import Template
from node.sandbox.machine import detect
from tests.node.homes import KEY_HOLDER, Federation, make_federation


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("warm"))


def confined(federation: Federation, name: str) -> Home:
    """A node's home in the posture of this machine: what confines the template, if anything does."""
    return replace(federation.home(name), posture=detect())


def test_templates_of_two_homes_come_from_one_process_and_end_with_their_relays(federation: Federation) -> None:
    nursery, process = start_nursery("synthetic")
    relays = []
    for name in (KEY_HOLDER, "bo"):
        control, theirs = socket.socketpair()
        jobs, their_jobs = socket.socketpair()
        nursery.fork_template(confined(federation, name), [theirs, their_jobs] if name == KEY_HOLDER else [theirs])
        theirs.close()
        their_jobs.close()
        relays.append((name, control, jobs))
    for name, control, jobs in relays:
        template = Template(control)
        enclave = template.start("prepare")
        template.hear()
        initial, prepared = enclave.channel.receive(60), enclave.channel.receive(60)
        assert np.frombuffer(initial["values"], "<f4").size == initial["parameters"] == 10_000
        assert prepared["kind"] == "prepared"
        (child,) = [c for c in psutil.Process(process).children() if c.name() == f"template {name}"[:15]]
        status = Path(f"/proc/{child.pid}/status").read_text()
        assert ("Seccomp:\t2" in status) == ("seccomp" not in detect().gaps), "it entered its room"
        enclave.end()
        control.close()
        jobs.close()
    deadline = time.monotonic() + 10
    while psutil.Process(process).children():
        assert time.monotonic() < deadline, "a template lives on without its relay"
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    reap(process)


def test_templates_die_with_it(federation: Federation) -> None:
    nursery, process = start_nursery("synthetic")
    control, theirs = socket.socketpair()
    nursery.fork_template(confined(federation, "bo"), [theirs])
    theirs.close()
    Template(control).start("prepare").channel.receive(60)
    children = psutil.Process(process).children(recursive=True)
    assert children
    os.kill(process, signal.SIGKILL)
    reap(process)
    assert not psutil.wait_procs(children, 5)[1]
    control.close()


def test_its_templates_share_the_pages_of_what_it_imported(federation: Federation) -> None:
    """A heavy task's imports, as a local run of hospitals has them, are there once."""
    nursery, process = start_nursery("tabular")
    controls = []
    for name in ("bo", "cy"):
        control, theirs = socket.socketpair()
        nursery.fork_template(confined(federation, name), [theirs])
        theirs.close()
        Template(control).start("prepare").channel.receive(120)
        controls.append(control)
    templates = [child for child in psutil.Process(process).children() if child.name().startswith("template")]
    assert len(templates) == 2
    for template in templates:
        rollup = Path(f"/proc/{template.pid}/smaps_rollup")
        if not os.access(rollup, os.R_OK):
            pytest.skip("only root may look into a node's processes")
        figures = {line.split()[0]: int(line.split()[1]) for line in rollup.read_text().splitlines()[1:]}
        private = figures["Private_Dirty:"] + figures["Private_Clean:"]
        assert "libtorch" in Path(f"/proc/{template.pid}/maps").read_text()
        assert private < figures["Rss:"] / 5
    os.kill(process, signal.SIGKILL)
    reap(process)
    for control in controls:
        control.close()
