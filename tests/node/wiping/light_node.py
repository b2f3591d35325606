"""``wardtree`` for a task that needs no torch: the templates then do not import it, and there is less to search."""

from __future__ import annotations

import node.enclave
from node.__main__ import main

node.enclave.WARM_FOR_OTHERS = ()
main()
