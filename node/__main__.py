"""The program ``wardtree``, and ``python -m node``. An interruption is one line, even while modules load."""

import sys

INTERRUPTED = 130


def main() -> None:
    """The console script."""
    try:
        from node.cli import main as run

        run()
    except (KeyboardInterrupt, SystemExit) as end:
        if isinstance(end, SystemExit) and end.code != INTERRUPTED:
            raise
        print("wardtree: interrupted; everything is ended", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
