"""Bytes of one rank by what holds them, for a DeepSpeed configuration, a micro-batch and a number of ranks.

Read off DeepSpeed 0.19.8 as it allocates, and checked against engines that run (tests/planning/test_memory.py):

- ZeRO-1 and 2 keep the weights whole; masters and both moments are a rank's share. Gradients wait in all their size
  (ZeRO-1) or as a rank's share (ZeRO-2). One bucket (two with overlap_comm) is allocated for the backward pass.
- ZeRO-3 shares the weights too, but holds its bucket always, and gathers: small parameters stay whole
  (stage3_param_persistence_threshold), others from their first use to their last, which at this size and the default
  stage3_max_live_parameters means all of them at once. Prefetched ones exist twice while they are unpacked.
- Offload moves masters, moments and an fp32 gradient to host memory, with offload_param a rank's weights too.

Activations, losses, bank, input and an online teacher are this project's own (`ssmke.planning.student`).
On a CPU device and host are the same memory, and `Memory.total` is their sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ssmke.objectives.cross_entropy import loss_bytes, waiting_bytes
from ssmke.planning.student import Model
from ssmke.training.ds_config import EngineConfig

GIB = 1 << 30
RESERVE = 1.25
"""GiB set aside on a GPU: about 0.5 for the CUDA context and cuBLAS' workspaces, the rest for NCCL's buffers."""
FRAGMENTATION = 0.05
"""Share of the rest that the caching allocator may lose between blocks: an assumption, not a measurement."""

_DEFAULTS = {"reduce_bucket_size": 5e8, "stage3_prefetch_bucket_size": 5e7}
_DEFAULTS |= {"stage3_param_persistence_threshold": 1e5, "stage3_max_live_parameters": 1e9}


@dataclass(frozen=True)
class Zero:
    """What of a DeepSpeed JSON decides memory and communication."""

    stage: int
    bucket: int
    """Elements of a reduction bucket."""
    overlap: bool
    prefetch: int
    persistence: int
    live: int
    offload_optimizer: bool
    offload_param: bool
    reduces_to_owner: bool
    """Each part of a bucket goes to its owner alone (use_multi_rank_bucket_allreduce false)."""

    @classmethod
    def of(cls, config: EngineConfig) -> Zero:
        """Reads a resolved configuration, with DeepSpeed's defaults."""
        section: dict[str, Any] = config.json.get("zero_optimization", {})
        stage = config.zero_stage

        def number(key: str) -> int:
            return int(section.get(key, _DEFAULTS[key]))

        def offloads(key: str) -> bool:
            return bool((section.get(key) or {}).get("device", "none") != "none")

        return cls(
            stage=stage,
            bucket=number("reduce_bucket_size"),
            overlap=bool(section.get("overlap_comm", stage == 3)),
            prefetch=number("stage3_prefetch_bucket_size"),
            persistence=number("stage3_param_persistence_threshold"),
            live=number("stage3_max_live_parameters"),
            offload_optimizer=offloads("offload_optimizer"),
            offload_param=offloads("offload_param"),
            reduces_to_owner=not section.get("use_multi_rank_bucket_allreduce", True),
        )


@dataclass(frozen=True)
class Memory:
    """Bytes by part at the moment when a rank holds most."""

    device: dict[str, int]
    """On the GPU (on a CPU: what would be there)."""
    host: dict[str, int]
    """In host memory, per rank."""

    @property
    def device_total(self) -> int:
        """Bytes on the device."""
        return sum(self.device.values())

    @property
    def total(self) -> int:
        """Device and host together."""
        return self.device_total + sum(self.host.values())


def memory(model: Model, zero: Zero, *, micro_batch: int, accumulation: int, ranks: int) -> Memory:
    """Peak bytes of one of ``ranks`` ranks at ``micro_batch`` x ``accumulation`` pairs a step."""
    device, host = _states(model, zero, ranks, accumulation)
    local = micro_batch * accumulation
    bank = model.losses.bank * (2 * (model.losses.distillation or 0) + 8)
    # One batch is trained on while the next one is copied to the device.
    copies = 2 if model.cuda else 1
    device |= {"target bank": bank, "input": copies * local * model.input_bytes}
    if model.teacher_weights:
        device["online teacher"] = model.teacher_weights
    highest, moments = -1, _work(model, zero, micro_batch, accumulation, ranks)
    work: dict[str, int] = {}
    for moment in moments:
        if sum(moment.values()) > highest:
            highest, work = sum(moment.values()), moment
    device |= work
    if model.cuda:
        device["reserve"] = round(RESERVE * GIB + FRAGMENTATION * sum(device.values()))
    return Memory({k: v for k, v in device.items() if v}, {k: v for k, v in host.items() if v})


def _states(model: Model, zero: Zero, ranks: int, accumulation: int) -> tuple[dict[str, int], dict[str, int]]:
    """What is there all the time, on the device and in host memory."""
    sizes, item = model.parameters, model.item
    whole, frozen = sizes.trained, sum(sizes.frozen)
    share = sum(-(-sum(group) // ranks) for group in sizes.groups)
    device: dict[str, int] = {"buffers": model.buffers}
    host: dict[str, int] = {}
    if zero.stage == 0:
        masters = 4 * whole if model.dtype != "fp32" else 0
        device |= {"weights": item * (whole + frozen), "masters": masters, "moments": 8 * whole}
        return device, host
    states = host if zero.offload_optimizer else device
    if zero.stage < 3:
        device["weights"] = item * (whole + frozen)
        states |= {"masters": 4 * share, "moments": 8 * share}
        if zero.offload_optimizer:
            device["offload buffer"] = item * sizes.largest
            host |= {"gradients": 4 * share, "weights on their way": item * (share + sizes.largest)}
            if accumulation > 1:
                host["accumulated gradients"] = item * share
        return device, host
    persistent = sum(n for group in sizes.groups for n in group if n <= zero.persistence)
    if _owns_all(model, zero, ranks):
        persistent = 0
    own = item * (share + -(-frozen // ranks))
    (host if zero.offload_param else device)["weights"] = own
    device |= {"persistent weights": item * persistent, "buckets": item * zero.bucket}
    states |= {"masters": 4 * share, "moments": 8 * share, "gradient shards": item * share}
    if zero.offload_optimizer:
        host["gradients in fp32"] = 4 * share
    return device, host


def _work(model: Model, zero: Zero, micro_batch: int, accumulation: int, ranks: int) -> list[dict[str, int]]:
    """Parts that come and go, at the moments that may be the highest."""
    sizes, item, acts = model.parameters, model.item, model.activations
    whole, local = sizes.trained, micro_batch * accumulation
    share = sum(-(-sum(group) // ranks) for group in sizes.groups)
    fill = item * min(zero.bucket, whole)
    buckets = {} if zero.stage in (0, 3) else {"buckets": item * zero.bucket * (2 if zero.overlap else 1)}
    gathered: dict[str, int] = {}
    unpacked = 0
    if zero.stage == 3:
        loose = min(zero.live, sum(n for group in sizes.groups for n in group if n > zero.persistence))
        loose += sum(sizes.frozen)
        unpacked = min(loose, zero.prefetch) if ranks > 1 else 0
        gathered = {"gathered weights": 0 if _owns_all(model, zero, ranks) else item * (loose + unpacked)}
    collecting = zero.stage < 2
    held = {"outputs": 2 * local * acts.outputs} if accumulation > 1 else {}
    kept = acts.kept.at(micro_batch)
    peak = acts.peak(micro_batch, collecting=collecting)
    # A bucket that fills up before the backward pass ends is copied into one piece for its reduction, and ZeRO-2 then
    # allocates all of this rank's part of the gradients, beside the activations that are left.
    fills = whole > zero.bucket and zero.stage in (1, 2)
    early = fill if fills and ranks > 1 else 0
    if zero.stage == 3 and whole > zero.bucket:
        early = max(0, fill - item * unpacked)  # gathers are unpacked before, so only the larger copy counts
    losses = losses_peak(model, local, ranks)
    # Gradients of earlier micro-batches stay.
    waiting = 0
    if (accumulation > 1 or (fills and zero.stage == 2)) and zero.stage < 3 and not zero.offload_optimizer:
        waiting = item * (share if zero.stage == 2 else whole)
    backward = {
        "activations": kept,
        # The largest gradient and the copy of a full bucket have different moments.
        "backward pass": max(0, peak - kept, early),
        "gradients": waiting,
    }
    backward |= buckets | gathered | held
    # Losses are computed beside the activations, or without them in a pass of their own.
    loss = {"losses": losses} | gathered | held | ({"activations": kept} if accumulation == 1 else {})
    left = item * (whole if collecting else share) if zero.stage < 3 else 0
    if zero.offload_optimizer:
        left = 0
    reduction = _reduction(model, zero, ranks, fill, left) | buckets
    step = (
        {"gradients": left}
        if zero.stage == 0
        else {"gradients": left, "gradients in fp32": _largest(model, ranks)}
    )
    if zero.offload_optimizer:
        step = {}
    if zero.stage == 0 and model.dtype != "fp32":
        step["gradients in fp32"] = 4 * whole
    moments = [backward, loss, reduction, step]
    if model.teacher_weights:
        moments.append({"teacher's pass": model.teacher_forward.at(local)})
    return moments


def _reduction(model: Model, zero: Zero, ranks: int, fill: int, left: int) -> dict[str, int]:
    """The last reduction of a backward pass, when the activations are gone; ``left``: gradients that stay after it."""
    whole = model.item * model.parameters.trained
    if zero.stage == 0:
        return {"gradients": left, "reduction": whole}
    if zero.stage == 1:  # gradients lie in the bucket as far as it reaches
        return {"gradients": whole - fill, "reduction": fill}
    copy = fill if ranks > 1 else 0
    if zero.stage == 2:
        # The copy of a first and only bucket is gone before this rank's part is allocated.
        several = model.parameters.trained > zero.bucket
        return {"gradients": left if several else max(0, left - copy), "reduction": copy}
    # Counted: two copies of the bucket; weights are let go of but for the largest, whose gradient comes last.
    last = 0 if _owns_all(model, zero, ranks) else model.item * model.parameters.largest
    return {"gathered weights": last, "reduction": 2 * fill}


def _owns_all(model: Model, zero: Zero, ranks: int) -> bool:
    """One rank alone uses its own share in place; only weights in host memory come to a GPU as a copy."""
    return ranks == 1 and not (zero.offload_param and model.cuda)


def losses_peak(model: Model, local: int, ranks: int) -> int:
    """Bytes of all losses of one rank: each one's gradients wait while the next one is computed."""
    losses, done, peak = model.losses, 0, 0
    kinds = [(width, ranks * local, True) for width in losses.contrast]
    if losses.distillation is not None:
        kinds.append((losses.distillation, ranks * local + losses.bank, False))
    for dim, columns, column_gradient in kinds:
        found = loss_bytes(
            local,
            columns,
            dim,
            column_gradient=column_gradient,
            max_logits=losses.max_logits,
            on_cpu=not model.cuda,
        )
        peak = max(peak, done + found)
        done += waiting_bytes(local, columns, dim, column_gradient=column_gradient)
    return peak


def _largest(model: Model, ranks: int) -> int:
    """A rank's gradient of the largest optimiser group in fp32, which is made when its turn comes."""
    return 4 * max((-(-sum(group) // ranks) for group in model.parameters.groups), default=0)
