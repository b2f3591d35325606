"""Sending fewer values: masks that everyone knows, what was left out carried to the next round, and how dense to be."""
