"""Integers to complex slots and back: several signed digits in each part of a slot.

A slot's real part carries ``sum over d of v_d * 2**(d*T)``, its imaginary part the same for other
values. Sums of parties add digit by digit; as long as every digit's sum stays in
``[-2**(T-1), 2**(T-1))``, which the plan guarantees, the digits come apart again exactly, with signs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError
from keys.plan import Plan

Integers = NDArray[np.int64]
Slots = NDArray[np.complex128]


class PackingError(WardtreeError):
    """Integers that cannot be packed."""


def pack(values: Integers, plan: Plan) -> Slots:
    """Pack integers into slots, padded with zeros to whole ciphertexts.

    Args:
        values: shape (length,), each at most ``plan.max_value`` in absolute value.

    Returns:
        Shape (ciphertexts, N/2): exact integers in both parts.

    Raises:
        PackingError: a value is out of range, or there are none.
    """
    if values.size == 0:
        raise PackingError("there is nothing to pack")
    if int(np.abs(values).max()) > plan.max_value:
        raise PackingError(f"an integer exceeds the {plan.value_bits} bits that the plan gives one party")
    count = plan.ciphertexts(values.size)
    padded = np.zeros(count * plan.values_per_ciphertext, np.int64)
    padded[: values.size] = values
    digits = padded.reshape(count, plan.digits, plan.slots, 2)
    total = np.zeros((count, plan.slots, 2), np.int64)
    for digit in range(plan.digits):
        total += digits[:, digit] << (digit * plan.digit_bits)
    return total.astype(np.float64).view(np.complex128)[..., 0]


def unpack(slots: Slots, plan: Plan) -> tuple[Integers, float]:
    """Round decrypted slots to integers and take the digits apart.

    Args:
        slots: shape (ciphertexts, N/2), as decrypted.

    Returns:
        The integers, padding included, shape (ciphertexts * values_per_ciphertext,), and the worst
        distance of a part from its nearest integer. The distance is computed from the secret key's
        noise: it never leaves the key room.
    """
    parts = np.stack([slots.real, slots.imag], axis=-1)
    rounded = np.rint(parts)
    residual = float(np.abs(parts - rounded).max())
    rest = rounded.astype(np.int64)
    half = 1 << (plan.digit_bits - 1)
    mask = (1 << plan.digit_bits) - 1
    digits = np.empty((slots.shape[0], plan.digits, plan.slots, 2), np.int64)
    for digit in range(plan.digits - 1):
        digits[:, digit] = ((rest + half) & mask) - half
        rest = (rest - digits[:, digit]) >> plan.digit_bits
    digits[:, -1] = rest  # the top digit keeps whatever is left, so an overflow is seen, not wrapped
    return digits.reshape(-1), residual
