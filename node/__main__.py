"""``python -m node``: the command-line program."""

from node.cli import main

main()
