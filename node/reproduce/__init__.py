"""The published experiments again, on real processes and sockets: one module a table, thin to run, long to read."""
