"""Leave root behind where a program was started by sudo, and does not need it."""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

from node.sandbox.machine import is_root


def leave_root(writes: Path) -> bool:
    """Become the user who called sudo, for good, if that user can read Python and write the folder ``writes``.

    Returns:
        Whether this process is no longer root. False also if it never was.
    """
    user = os.environ.get("SUDO_UID", "")
    if not is_root() or not user.isdecimal() or user == "0":
        return False
    uid = int(user)
    gid = int(os.environ.get("SUDO_GID", user))
    child = os.fork()
    if child == 0:  # whether that user could go on, nobody knows before
        try:
            _become(uid, gid)
            readable = all(os.access(path, os.R_OK) for path in (tempfile.__file__, __file__))
            existing = next(folder for folder in (writes, *writes.parents) if folder.exists())
            os._exit(not (readable and os.access(existing, os.W_OK | os.X_OK)))
        except BaseException:
            os._exit(1)
    if os.waitpid(child, 0)[1] != 0:
        return False
    _become(uid, gid)
    return True


def _become(uid: int, gid: int) -> None:
    try:
        os.initgroups(pwd.getpwuid(uid).pw_name, gid)
    except KeyError:
        os.setgroups([gid])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
