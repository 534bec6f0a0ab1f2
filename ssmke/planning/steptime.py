"""Seconds of a step on GPUs, from arithmetic on published figures: compute, optimiser, communication, offload.

    step = compute + optimiser + what communication cannot hide behind compute + offload

- Compute: operations of the pairs (`ssmke.cost.efficiency.flops`) over the dense peak times a utilisation that is an
  interval. Accumulation adds a forward pass, checkpointing one of the student.
- Optimiser: AdamW reads and writes 30 bytes a parameter of its share; a GPU's memory moves them.
- Communication: `ssmke.planning.communication` over the slowest link of the ring. At best the gradients' reduction and
  ZeRO-3's gathers hide behind two thirds of the compute (the backward pass); at worst nothing does. The losses'
  gathers and the weights' gather after the step (ZeRO-0 to 2) hide behind nothing.
- Offload: gradients down and weights up over PCIe, then AdamW on the host.

Not in it: latency of small collectives, stragglers, waiting for data. On CPUs none of these figures hold:
`benchmarks/scaling.py` puts the same formula with measured figures beside steps that ran.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssmke.cost.efficiency.flops import Shapes, per_pair
from ssmke.cost.estimates.estimate import Interval
from ssmke.planning.communication import Communication, sent
from ssmke.planning.memory import Zero
from ssmke.planning.student import Model

GB = 1e9
LINKS = {
    # NVIDIA H100 data sheet: 900 GB/s in both directions together.
    "nvlink4": 450.0,
    # NVIDIA A100 data sheet: 600 GB/s in both directions together.
    "nvlink3": 300.0,
    # PCI-SIG: 32 and 16 GT/s a lane, 16 lanes, 128b/130b coding.
    "pcie5": 63.0,
    "pcie4": 31.5,
}
"""Between the GPUs of a node: GB/s of one GPU in one direction."""
NETWORKS = {
    # NVIDIA Quantum-2 and ConnectX-7 data sheets: 400 Gbit/s a port; a DGX H100 has one for each of its 8 GPUs.
    "ndr400": 8 * 50.0,
    # NVIDIA Quantum and ConnectX-6 data sheets: 200 Gbit/s a port; a DGX A100 has 8.
    "hdr200": 8 * 25.0,
    # IEEE 802.3: one port a node.
    "ethernet100": 12.5,
    "ethernet25": 3.125,
}
"""Between nodes: GB/s of a whole node in one direction."""
NODE = 8
"""GPUs of a node."""
REACHED = Interval(0.6, 0.75, 0.9)
"""Share of a link's rate that collectives reach: an assumption (NCCL's own tests show 0.8 to 0.9 on large buffers)."""
OPTIMISER_BYTES = 30
"""Master, two moments and gradient read, master and moments written in fp32; the weight written in 16 bits."""
MEMORY_REACHED = 0.8
"""Share of a memory's rate that a fused optimiser reaches: an assumption."""
HOST_GB_S = 20.0
"""Memory bandwidth of one rank's share of a host, for CPUAdam: an assumption (8 ranks on 200 GB/s reach 25)."""
BACKWARD = 2 / 3
"""Share of compute that is the backward pass: twice the forward one."""


@dataclass(frozen=True)
class Hardware:
    """What a rank computes with. ``peak`` FLOP/s, ``memory`` and ``ring`` bytes per second, one direction;
    ``caching``: FLOP/s of target caches, which are filled in fp32 (None: ``peak``)."""

    peak: float
    memory: float | None
    ring: float
    pcie: float = LINKS["pcie4"] * GB
    host: float = HOST_GB_S * GB
    caching: float | None = None


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step: low is fast."""

    compute: Interval
    optimiser: float
    exposed: Interval
    """Communication that does not hide."""
    offload: float

    @property
    def total(self) -> Interval:
        """The step."""
        fixed = self.optimiser + self.offload
        return self.compute + self.exposed + Interval.exactly(fixed)

    @property
    def binds(self) -> str:
        """The part that takes most of the likely step."""
        parts = {
            "FLOP/s": self.compute.point,
            "network": self.exposed.point,
            "GPU memory": self.optimiser,
            "PCIe and host": self.offload,
        }
        return max(parts, key=lambda name: parts[name])


def ring_rate(gpus: int, link: str, network: str) -> float:
    """Bytes per second that a rank sends in a ring: its own link, or the node's network that all rings share."""
    inside = LINKS[link] * GB
    return inside if gpus <= NODE else min(inside, NETWORKS[network] * GB)


def flops_of_pair(shapes: Shapes, text_tokens: float, *, accumulation: int, checkpointing: bool) -> float:
    """Operations that are done for a pair, those that are done twice to save memory included."""
    forward = shapes.forward(text_tokens)
    again = (1 if accumulation > 1 else 0) + (1 if checkpointing else 0)
    return per_pair(shapes, text_tokens).total + again * forward


def step_time(
    model: Model,
    zero: Zero,
    traffic: Communication,
    hardware: Hardware,
    *,
    flops: float,
    pairs: int,
    mfu: Interval,
) -> StepTime:
    """Seconds of a step of ``pairs`` pairs a rank at ``flops`` operations each."""
    ranks = traffic.ranks
    compute = mfu.invert() * (flops * pairs / hardware.peak)
    share = model.parameters.trained / (1 if zero.stage == 0 else ranks)
    optimiser = offload = 0.0
    if zero.offload_optimizer:
        moved = model.item * share * (2 + (1 if zero.offload_param else 0))
        offload = moved / hardware.pcie + OPTIMISER_BYTES * share / hardware.host
    elif hardware.memory is not None:
        optimiser = OPTIMISER_BYTES * share / (hardware.memory * MEMORY_REACHED)
    rate = REACHED.invert() * (1 / hardware.ring)
    behind = {
        kind: size
        for kind, size in traffic.weights_and_gradients.items()
        if zero.overlap and (zero.stage == 3 or kind != "all-gather")
    }
    hidden = rate * sent(behind, ranks)
    all_of_it = rate * traffic.sent
    open_ = rate * (traffic.sent - sent(behind, ranks))

    def exposed(at: str) -> float:
        rest = max(0.0, getattr(hidden, at) - BACKWARD * getattr(compute, at))
        return float(getattr(open_, at) + rest)

    low, point = exposed("low"), exposed("point")
    point = max(low, point)
    return StepTime(compute, optimiser, Interval(low, point, max(point, all_of_it.high)), offload)
