"""Records the collectives that a step really issues, whoever issues them: DeepSpeed, the losses, this project.

Every collective of `torch.distributed` passes the dispatcher as an operation of the namespace c10d, so a dispatch mode
sees all of them, on any backend. Not for timed steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ssmke.planning.communication import ALL_GATHER, ALL_REDUCE, REDUCE, REDUCE_SCATTER

_KINDS = {
    "allreduce_": (ALL_REDUCE, 0),
    "_allgather_base_": (ALL_GATHER, 0),
    "allgather_": (ALL_GATHER, 0),
    "allgather_into_tensor_coalesced_": (ALL_GATHER, 0),
    "_reduce_scatter_base_": (REDUCE_SCATTER, 1),
    "reduce_scatter_": (REDUCE_SCATTER, 1),
    "reduce_": (REDUCE, 0),
}
"""Operation -> collective, and which argument is the whole buffer."""


class CollectiveRecorder(TorchDispatchMode):
    """Counts calls and bytes of whole buffers by collective while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call: Callable[..., Any] = func
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            kind, whole = _KINDS.get(name, (name, 0))
            self.calls[kind] += 1
            self.bytes[kind] += _size(args[whole])
        return call(*args, **(kwargs or {}))


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(map(_size, value)) if isinstance(value, (list, tuple)) else 0
