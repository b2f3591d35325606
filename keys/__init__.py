"""Identities, manifest, ceremony, vault, CKKS parameters, Sealer and Opener. No sockets, no torch."""
