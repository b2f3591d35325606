"""Learning tasks: what a hospital plugs into a node."""
