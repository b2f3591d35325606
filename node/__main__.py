"""The program ``wardtree``, and ``python -m node``. An interruption is one line, even while modules load."""

import os
import signal
import sys

INTERRUPTED = 130
LINE = "wardtree: interrupted; everything is ended"


def main() -> None:
    """The console script."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        from node.cli import main as run

        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        print(LINE, file=sys.stderr)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what Python still does at its end would be a traceback


def _end_at_once(*_: object) -> None:
    """While modules load there is nothing to end: an exception in there would be told by whoever imports."""
    os.write(2, f"{LINE}\n".encode())
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
