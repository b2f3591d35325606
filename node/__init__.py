"""One hospital's node."""
