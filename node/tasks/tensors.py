"""The tensors of a torch module: those that are shared, as one flat vector, and those that stay at the hospital."""

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from keys.errors import WardtreeError


class Tensors:
    """A module between rounds.

    Shared are its parameters, in the module's order; local are its buffers (the statistics of normalisation, say) and
    the parameters whose name ``stays_local`` says so of (a head of one's own, say).

    Attributes:
        shared: how many values are shared.
    """

    def __init__(self, module: torch.nn.Module, stays_local: Callable[[str], bool] = lambda name: False) -> None:
        self._module = module
        self._shared = {name: tensor for name, tensor in module.named_parameters() if not stays_local(name)}
        self._local = {name: tensor for name, tensor in module.state_dict().items() if name not in self._shared}
        self.shared = sum(tensor.numel() for tensor in self._shared.values())

    def read(self) -> NDArray[np.float32]:
        """The shared values, shape (shared,): a copy."""
        if not self._shared:
            return np.zeros(0, np.float32)
        flat: NDArray[np.float32] = torch.cat([each.detach().reshape(-1) for each in self._shared.values()]).numpy()
        return flat.astype(np.float32)

    def write(self, values: NDArray[np.float32], local: bytes | None = None) -> torch.nn.Module:
        """Put shared values, shape (shared,), and what :meth:`local` gave, into the module; gives it.

        Raises:
            WardtreeError: they are another module's.
        """
        if values.shape != (self.shared,):
            raise WardtreeError(f"expected {self.shared} shared values, came shape {values.shape}")
        start = 0
        with torch.no_grad():
            for tensor in self._shared.values():
                part = values[start : start + tensor.numel()]
                tensor.copy_(torch.tensor(part).reshape(tensor.shape))
                start += tensor.numel()
            if local is not None:
                self._write_local(local)
        return self._module

    def local(self) -> bytes:
        """What stays at the hospital, to be carried to the next round."""
        file = io.BytesIO()
        np.savez(file, **{name: tensor.detach().numpy() for name, tensor in self._local.items()})
        return file.getvalue()

    def _write_local(self, local: bytes) -> None:
        with np.load(io.BytesIO(local), allow_pickle=False) as arrays:
            if {name: arrays[name].shape for name in arrays} != {n: tuple(t.shape) for n, t in self._local.items()}:
                raise WardtreeError("expected the local tensors of this module, came others")
            for name, tensor in self._local.items():
                tensor.copy_(torch.from_numpy(arrays[name]))
