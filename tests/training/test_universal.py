"""States go on by parameter under another ZeRO stage, on two real ranks; numbers of ranks change in `test_reshape`.

The network has what DeepSpeed's own converter or loader loses: buffers, a frozen layer, groups with different options,
and a group of one number, of which the second rank holds nothing. Each new engine starts from other random weights, so
that what is not restored shows.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import socket
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor, nn

from ssmke.errors import CheckpointError
from ssmke.training import checkpoint, universal
from ssmke.training.checkpoint import CheckpointConfig, Progress
from ssmke.training.optimizer import OptimConfig, build_optimizer, parameter_groups

STEPS = 3
CHAIN = (2, 3, 1, 3, 2)
OPTIM = OptimConfig(lr=1e-2, weight_decay=0.5)


class Net(nn.Module):
    """Stands for the objective where only its parameters and buffers matter."""

    bank = None

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(7, 5, bias=False)  # a bias would have no gradient before the norm
        self.norm = nn.BatchNorm1d(5)
        self.frozen = nn.Linear(5, 5)
        self.frozen.requires_grad_(requires_grad=False)
        self.last = nn.Linear(5, 3)
        self.log_scale_output = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.frozen(self.norm(self.first(x)).tanh()))
        return (self.log_scale_output.exp() * x - 1).square().mean()


def _engine(stage: int, seed: int) -> Any:
    import deepspeed

    module = Net(seed)
    groups = parameter_groups(module, OPTIM)  # type: ignore[arg-type]
    config = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": stage}}
    if stage == 3:
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 4  # type: ignore[index]
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=build_optimizer(groups, OPTIM, cuda=False, offload=False),
        config=config,
        dist_init_required=False,
    )
    return engine


def _train(engine: Any, begin: int, rank: int) -> list[float]:
    losses = []
    for step in range(begin, begin + STEPS):
        generator = torch.Generator().manual_seed(10 * step + rank)
        loss = engine(torch.randn(4, 7, generator=generator))
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses


def _options(engine: Any) -> list[dict[str, Any]]:
    return [{k: v for k, v in g.items() if k != "params"} for g in engine.optimizer.param_groups]


def _rank(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    import deepspeed

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    whole = _engine(2, seed=0)
    unbroken = [_train(whole, STEPS * number, rank) for number in range(len(CHAIN))]
    engine, found, said = _engine(CHAIN[0], seed=0), [], []
    for number, stage in enumerate(CHAIN):
        if number:
            info = checkpoint.newest(folder)
            assert info is not None
            engine = _engine(stage, seed=number)
            options = _options(engine)
            checkpoint.load(
                engine, engine.module, info, checkpoint.CheckpointConfig(keep=9), stage, said.append
            )
            assert _options(engine) == options
            assert engine.global_steps == STEPS * number
        found.append(_train(engine, STEPS * number, rank))
        progress = Progress(STEPS * (number + 1), 0, "lineage")
        checkpoint.save(engine, engine.module, folder, progress, CheckpointConfig(keep=len(CHAIN)), stage)
    torch.save(
        {
            "unbroken": unbroken,
            "found": found,
            "said": said,
            "states": engine.module.state_dict(),
            "unbroken states": whole.module.state_dict(),
        },
        folder / f"rank-{rank}.pt",
    )
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a training over all of `CHAIN`, and what its ranks saw."""
    folder = tmp_path_factory.mktemp("chain")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_rank, (port, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("rank", [0, 1])
def test_losses_go_on_over_every_change_of_stage(rank: int, chain: Path) -> None:
    seen = torch.load(chain / f"rank-{rank}.pt")
    for stage, found, unbroken in zip(CHAIN, seen["found"], seen["unbroken"], strict=True):
        assert found == pytest.approx(unbroken, rel=1e-5), f"ZeRO-{stage}"


def test_weights_buffers_and_the_frozen_layer_are_those_of_the_unbroken_training(chain: Path) -> None:
    seen = torch.load(chain / "rank-0.pt")
    assert "norm.running_mean" in seen["states"]
    for name, value in seen["unbroken states"].items():
        torch.testing.assert_close(seen["states"][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_the_change_is_said_and_nothing_is_left_of_it(chain: Path) -> None:
    (first, *_) = said = torch.load(chain / "rank-0.pt")["said"]
    assert len(said) == len(CHAIN) - 1
    assert first.startswith(
        "checkpoint step-00000003 of 2 ranks with ZeRO-2 goes on with 2 ranks and ZeRO-3: converted in "
    )
    assert not list(chain.glob(".*"))


@pytest.mark.parametrize("number", [1, 2])
def test_tensors_are_those_of_deepspeeds_converter(number: int, chain: Path, tmp_path: Path) -> None:
    source = chain / f"step-{STEPS * (number + 1):08d}"
    (tmp_path / "ours").mkdir()
    universal.convert(source, tmp_path / "ours", CHAIN[number], client=("progress",))
    _convert_with_deepspeed(source, tmp_path / "theirs")
    for state in (universal.MASTER, *universal.MOMENTS):
        ours = load_file(tmp_path / "ours" / f"{state}.safetensors")
        assert len(ours) == 6
        for name, value in ours.items():
            theirs = torch.load(tmp_path / "theirs" / "zero" / name / f"{state}.pt", weights_only=False)
            theirs = theirs["param"].flatten() if isinstance(theirs, dict) else theirs
            assert torch.equal(value, theirs), name


def _convert_with_deepspeed(source: Path, target: Path) -> None:
    from argparse import Namespace

    from deepspeed.checkpoint import ds_to_universal

    target.mkdir()
    with redirect_stdout(io.StringIO()):
        ds_to_universal.main(
            Namespace(
                input_folder=str(source),
                output_folder=str(target),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
        )


class Runs:
    """Pickles to a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("this must not run",))


def test_a_file_that_would_run_code_is_refused_without_running_it(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copytree(chain / "step-00000003", tmp_path / "step-00000003")
    universal.require_plain(path)
    torch.save({"module": Runs()}, path / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match=r"model_states.*would run .*print"):
        universal.require_plain(path)
    (path / "mp_rank_00_model_states.pt").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(CheckpointError, match=r"model_states"):
        universal.require_plain(path)
    assert "must not run" not in capsys.readouterr().out


def test_a_checkpoint_that_lacks_a_rank_is_not_converted(chain: Path, tmp_path: Path) -> None:
    path = shutil.copytree(chain / "step-00000003", tmp_path / "step-00000003")
    next(path.glob("*pp_rank_1_*")).unlink()
    (tmp_path / "to").mkdir()
    with pytest.raises(CheckpointError, match=r"fp32 of .* is missing in part"):
        universal.convert(path, tmp_path / "to", 2, client=())
