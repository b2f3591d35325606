"""Two tasks to start from; ``wardtree task new`` writes a copy."""
