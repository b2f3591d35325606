"""Plain ``tenseal.ckks_vector`` for the benchmark: the common way to add updates under CKKS.

One vector holds the whole update, encrypted under a public key; the server has no secret key.
"""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import tenseal as ts

from node.bench.common import DISTINCT, Clock, arguments, make_update, print_result

SETTINGS = {8192: ([60, 40, 40], 40), 4096: ([40, 20, 40], 20)}
"""Primes and the logarithm of the scale, by ring degree."""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--degree", type=int, choices=SETTINGS, default=8192)
    options = parser.parse_args()
    primes, scale_bits = SETTINGS[options.degree]
    secret = ts.context(ts.SCHEME_TYPE.CKKS, options.degree, coeff_mod_bit_sizes=primes)
    secret.global_scale = 2.0**scale_bits
    public = ts.context_from(
        secret.serialize(save_public_key=True, save_secret_key=False, save_galois_keys=False, save_relin_keys=False)
    )
    update = make_update(options.params)
    clock = Clock()
    kept: list[bytes] = []
    for _ in clock.runs_after_warm_up(options.repeats):
        with clock.time("protect"):
            message = ts.ckks_vector(public, update).serialize()
        while len(kept) < min(options.parties, DISTINCT) - 1:
            kept.append(ts.ckks_vector(public, update).serialize())
        messages = [message, *kept]
        with clock.time("server"):
            total = ts.ckks_vector_from(public, messages[0])
            for party in range(1, options.parties):
                total += ts.ckks_vector_from(public, messages[party % len(messages)])
            reply = total.serialize()
        del total
        with clock.time("read_back"):
            opened = ts.ckks_vector_from(secret, reply).decrypt()
    mean = np.asarray(opened) / options.parties
    print_result(clock, update, len(message), mean, f"tenseal {version('tenseal')}")


if __name__ == "__main__":
    main()
