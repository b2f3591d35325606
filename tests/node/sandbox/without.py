"""``python -m tests.node.sandbox.without PART ARGUMENTS...``: wardtree on a kernel that lacks a part of the sandbox.

A filter of system calls stands for the older kernel: it answers as that would.
"""

from __future__ import annotations

import errno
import sys
from dataclasses import replace

from node.__main__ import main
from node.sandbox.kernel import conceal
from node.sandbox.seccomp import ALLOWED, UNKNOWN, Rule, Test, install, this_machine

_PR_SET_SECCOMP = 22
_EVERYTHING_BUT_FILTERS = tuple(option for option in range(100) if option != _PR_SET_SECCOMP)
PARTS = {
    "landlock": {"landlock_create_ruleset": UNKNOWN},  # Linux before 5.13, or built without: ENOSYS
    "landlock, switched off": {"landlock_create_ruleset": replace(UNKNOWN, error=errno.EOPNOTSUPP)},
    "landlock, refusing": {"landlock_restrict_self": UNKNOWN},
    "landlock, pretending": {"landlock_restrict_self": Rule((), 0)},  # says that it did it, and did not
    "seccomp": {"prctl": Rule(((Test(0, _EVERYTHING_BUT_FILTERS),),), errno.EINVAL), "seccomp": UNKNOWN},
}

if __name__ == "__main__":
    conceal()
    install({**dict.fromkeys(this_machine().calls, ALLOWED), **PARTS[sys.argv.pop(1)]})
    main()
