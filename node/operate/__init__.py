"""Operating a node: what it does now, on a terminal, on a page and as metrics; and whether its network is ready."""
