"""Benchmarks of the encryption, alone and beside its peers. What the peers' programs import lives here."""
