"""Real nodes under seeded faults: what goes wrong when, doing it, and what must hold whatever it was."""
