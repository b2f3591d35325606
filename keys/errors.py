"""Errors that a user can cause.

The text of such an error is what the user reads, so it says who, what was expected and what came,
on one line, and never carries a secret. Everything else that is raised is a bug of ours.
"""


class WardtreeError(Exception):
    """Something outside this program is wrong; ``str()`` of it is the whole message."""
