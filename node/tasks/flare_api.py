"""The names of FLARE's client API, for one round in this process: what a script imports as ``nvflare.client``.

A script asks ``receive`` for the model, and hands what became of it to ``send``; there is no server, and no connection.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from types import ModuleType
from typing import Any


class ParamsType(StrEnum):
    """Whether parameters are a model, or the difference to the one that was received."""

    FULL = "FULL"
    DIFF = "DIFF"


@dataclass
class FLModel:
    """What a script receives and sends, with the names that FLARE gives them."""

    params_type: str | None = None
    params: Any = None
    optimizer_params: Any = None
    metrics: dict[str, Any] | None = None
    start_round: int | None = 0
    current_round: int | None = None
    total_rounds: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass
class Round:
    """One round of one script: ``given`` is what it receives, ``sent`` what it sent, if it did."""

    site: str
    job: str
    purpose: str
    given: FLModel
    config: dict[str, Any]
    sent: FLModel | None = None
    received: bool = False


class _Writer:
    """What takes a script's curves elsewhere: they go nowhere. A hospital's own figures stay in the hospital."""

    def add_scalar(self, *_: Any, **__: Any) -> None: ...

    def add_scalars(self, *_: Any, **__: Any) -> None: ...


@contextmanager
def standing_in(current: Round) -> Iterator[None]:
    """While it lasts, ``nvflare.client`` is this round's, even where the package itself is installed."""
    mine = _modules(current)
    before = {name: sys.modules[name] for name in list(sys.modules) if name.split(".")[0] == "nvflare"}
    for name in before:
        del sys.modules[name]
    sys.modules.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del sys.modules[name]
        sys.modules.update(before)


def _modules(current: Round) -> dict[str, ModuleType]:
    def receive(timeout: float | None = None, ctx: Any = None) -> FLModel | None:
        """The model of this round, once; then None, as at the end of a job."""
        again, current.received = current.received, True
        return None if again else current.given

    def send(model: FLModel, clear_cache: bool = True, ctx: Any = None) -> None:
        if not isinstance(model, FLModel):
            raise TypeError("model needs to be an instance of FLModel")
        current.sent = model

    client, tracking = ModuleType("nvflare.client"), ModuleType("nvflare.client.tracking")
    package = ModuleType("nvflare")
    client.__dict__.update(
        FLModel=FLModel,
        ParamsType=ParamsType,
        init=lambda rank=None, config_file=None: current,
        shutdown=lambda ctx=None: None,
        receive=receive,
        send=send,
        is_running=lambda ctx=None: current.sent is None and not current.received,
        is_train=lambda ctx=None: current.purpose == "train",
        is_evaluate=lambda ctx=None: current.purpose == "evaluate",
        is_submit_model=lambda ctx=None: False,
        get_task_name=lambda ctx=None: current.purpose,
        get_site_name=lambda ctx=None: current.site,
        get_job_id=lambda ctx=None: current.job,
        get_config=lambda ctx=None: dict(current.config),
        system_info=lambda ctx=None: {"site_name": current.site, "job_id": current.job},
        log=lambda key, value, data_type, ctx=None, **_: True,
        tracking=tracking,
        __path__=[],
    )
    tracking.__dict__.update(SummaryWriter=_Writer)
    package.__dict__.update(client=client, __path__=[])
    return {"nvflare": package, "nvflare.client": client, "nvflare.client.tracking": tracking}
