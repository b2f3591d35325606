"""Integers to complex slots and back: several signed digits in each part of a slot.

A slot's real part carries ``sum over d of v_d * 2**(d*T)``, its imaginary part the same for other
values. Sums of parties add digit by digit; as long as every digit's sum stays in
``[-2**(T-1), 2**(T-1))``, which the plan guarantees, the digits come apart again exactly, with signs.

The first ``canary_digits`` digits of every ciphertext carry canaries (``keys/canaries.py``), the rest values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError
from keys.plan import Plan

Integers = NDArray[np.int64]
Slots = NDArray[np.complex128]


class PackingError(WardtreeError):
    """Integers that cannot be packed."""


@dataclass(frozen=True)
class Unpacked:
    """What decrypted slots hold.

    Attributes:
        values: shape (ciphertexts * values_per_ciphertext,), padding included.
        canaries: shape (ciphertexts, canary_digits).
        residuals: shape (ciphertexts, N/2, 2), distance of each part from its nearest integer. They come
            from the secret key's noise and never leave the key room.
    """

    values: Integers
    canaries: Integers
    residuals: NDArray[np.float64]


def pack(values: Integers, plan: Plan, canaries: Integers | None = None) -> Slots:
    """Pack integers into slots, padded with zeros to whole ciphertexts.

    Args:
        values: shape (length,), each at most ``plan.max_value`` in absolute value, and ``plan.max_noise`` more where a
            party adds noise on purpose.
        canaries: shape (ciphertexts, plan.canary_digits), likewise; None: zeros.

    Returns:
        Shape (ciphertexts, N/2): exact integers in both parts.

    Raises:
        PackingError: a value is out of range, there are none, or the canaries have another shape.
    """
    if values.size == 0:
        raise PackingError("there is nothing to pack")
    count = plan.ciphertexts(values.size)
    if canaries is not None and canaries.shape != (count, plan.canary_digits):
        raise PackingError(f"canaries of shape ({count}, {plan.canary_digits}) were expected, came {canaries.shape}")
    for part, largest in ((values, plan.max_value + plan.max_noise), (canaries, plan.max_value)):
        if part is not None and max(int(part.max()), -int(part.min())) > largest:
            raise PackingError(f"an integer exceeds the {plan.value_bits} bits that the plan gives one party")
    digits = np.zeros((count, plan.digits_per_ciphertext))  # float64 is exact here: the plan sees to it
    if canaries is not None:
        digits[:, : plan.canary_digits] = canaries
    full, rest = divmod(values.size, plan.values_per_ciphertext)
    digits[:full, plan.canary_digits :] = values[: values.size - rest].reshape(full, plan.values_per_ciphertext)
    digits[full:, plan.canary_digits : plan.canary_digits + rest] = values[values.size - rest :]
    *lower, total = np.moveaxis(digits.reshape(count, plan.digits, plan.slots, 2), 1, 0)
    for digit in reversed(lower):
        total *= 1 << plan.digit_bits
        total += digit
    return total.view(np.complex128)[..., 0]


def unpack(slots: Slots, plan: Plan) -> Unpacked:
    """Round decrypted slots, shape (ciphertexts, N/2), to integers and take the digits apart."""
    parts = np.stack([slots.real, slots.imag], axis=-1)
    rounded = np.rint(parts)
    rest = rounded.astype(np.int64)
    half = 1 << (plan.digit_bits - 1)
    mask = (1 << plan.digit_bits) - 1
    digits = np.empty((slots.shape[0], plan.digits, plan.slots, 2), np.int64)
    for digit in range(plan.digits - 1):
        digits[:, digit] = ((rest + half) & mask) - half
        rest = (rest - digits[:, digit]) >> plan.digit_bits
    digits[:, -1] = rest  # the top digit keeps whatever is left, so an overflow is seen, not wrapped
    flat = digits.reshape(slots.shape[0], plan.digits_per_ciphertext)
    return Unpacked(
        values=flat[:, plan.canary_digits :].reshape(-1),
        canaries=flat[:, : plan.canary_digits],
        residuals=parts - rounded,
    )
