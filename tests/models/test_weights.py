"""Reading weights without unpickling, and loading them without losing a tensor."""

from __future__ import annotations

import argparse
import fractions
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ssmke.errors import WeightsError
from ssmke.models.weights import load_exactly, read_weights, resolve_path, weights_digest

Save = Callable[[object], str]


def test_every_tensor_of_a_nested_checkpoint_is_read(save: Save) -> None:
    checkpoint = {
        "model": {"a": torch.ones(2), "_ema": {"a": torch.zeros(2)}},
        "optimizer": {"state": {0: {"exp_avg": torch.full((1,), 3.0)}}, "lr": 0.1},
        "args": argparse.Namespace(lr=0.1),
        "epoch": 3,
    }
    tensors = read_weights(save(checkpoint))
    assert sorted(tensors) == ["model._ema.a", "model.a", "optimizer.state.0.exp_avg"]
    assert tensors["model.a"].tolist() == [1, 1]


def test_files_of_old_torch_are_read(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"a": torch.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    assert read_weights(path)["a"].tolist() == [0, 1, 2]


def test_a_model_folder_is_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert list(read_weights(tmp_path)) == ["a"]


class Attack:
    """Pickles to a call that leaves a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


@pytest.mark.parametrize("modern", [True, False])
def test_code_in_a_file_is_never_run(tmp_path: Path, modern: bool) -> None:
    path, trace = tmp_path / "evil.pth", tmp_path / "trace"
    content = {"model": {"a": torch.ones(1)}, "cfg": Attack(trace)}
    torch.save(content, path, _use_new_zipfile_serialization=modern)
    with pytest.raises(WeightsError, match="holds Python objects"):
        read_weights(path)
    assert not trace.exists()


def test_the_conversion_that_a_refusal_offers_works(save: Save) -> None:
    path = save(
        {"model": {"a": torch.ones(2), "_ema": {"a": torch.ones(2)}}, "cfg": fractions.Fraction(1, 3)}
    )
    with pytest.raises(WeightsError) as refusal:
        read_weights(path)
    command = shlex.split(str(refusal.value).splitlines()[-1])
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    assert read_weights(Path(path).with_suffix(".safetensors"))["a"].tolist() == [1, 1]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pth"
    torch.save({"a": torch.randn(1000)}, whole)
    data = whole.read_bytes()
    for name, content in [
        ("cut.pth", data[: len(data) // 2]),
        ("text.pth", b"<html>not found</html>"),
        ("0.pth", b""),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            read_weights(tmp_path / name)
    safetensors.torch.save_file({"a": torch.randn(1000)}, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"cut\.safetensors"):
        read_weights(tmp_path / "cut.safetensors")


def test_what_is_not_there_is_named(tmp_path: Path, save: Save) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.pth"):
        read_weights(tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match="ships no such file"):
        resolve_path("package:nothing.safetensors")
    with pytest.raises(WeightsError, match="none of model"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="split over several files"):
        read_weights(tmp_path)
    (tmp_path / "weights.npz").write_bytes(b"")
    with pytest.raises(WeightsError, match="unknown kind"):
        read_weights(tmp_path / "weights.npz")
    with pytest.raises(WeightsError, match="no tensors"):
        read_weights(save({"epoch": 3}))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


KEYS = sorted(network().state_dict())


def test_an_exact_state_is_loaded_into_the_dtype_of_the_module() -> None:
    source, target = network(), network().double()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    state = {
        key: tensor.half() if tensor.is_floating_point() else tensor
        for key, tensor in source.state_dict().items()
    }
    report = load_exactly(
        target, {**state, "head.bias": torch.ones(1)}, source="f", dropped={"head.bias": "a head"}
    )
    assert (report.loaded, dict(report.dropped)) == (len(KEYS), {"head.bias": "a head"})
    assert str(report) == f"f: {len(KEYS)} tensors loaded, 1 dropped (1 a head)"
    for key, tensor in target.state_dict().items():
        torch.testing.assert_close(tensor, state[key].to(tensor.dtype))


@settings(max_examples=40, deadline=None)
@given(st.sets(st.sampled_from(KEYS)), st.sets(st.sampled_from(["x", "head.weight", "7.bias"])))
def test_any_missing_or_extra_tensor_is_refused_by_name(missing: set[str], extra: set[str]) -> None:
    target, state = network(), {k: v + 1 for k, v in network().state_dict().items() if k not in missing}
    state |= {key: torch.ones(1) for key in extra}
    before = weights_digest(target)
    if not missing and not extra:
        load_exactly(target, state, source="f")
        assert weights_digest(target) == weights_digest(state)
        return
    with pytest.raises(WeightsError) as refusal:
        load_exactly(target, state, source="the file")
    named = str(refusal.value)
    assert "the file" in named
    assert sum(key in named for key in missing) >= min(len(missing), 6)
    assert all(key in named for key in extra)
    assert weights_digest(target) == before


def test_shapes_and_values_are_checked() -> None:
    target, state = network(), dict(network().state_dict())
    before = weights_digest(target)
    with pytest.raises(WeightsError, match=r"0\.weight \(file \(4, 5\), model \(4, 3\)\)"):
        load_exactly(target, {**state, "0.weight": torch.ones(4, 5)}, source="f")
    with pytest.raises(WeightsError, match=r"infinite: 2\.bias"):
        load_exactly(target, {**state, "2.bias": torch.tensor([1.0, float("nan")])}, source="f")
    assert weights_digest(target) == before


def test_a_module_that_zero3_has_partitioned_is_refused() -> None:
    target = network()
    next(target.parameters()).ds_id = 0  # type: ignore[attr-defined]
    with pytest.raises(WeightsError, match=r"zero\.Init"):
        load_exactly(target, network().state_dict(), source="f")


def test_the_digest_sees_name_dtype_shape_and_value_but_not_order() -> None:
    state: dict[str, Tensor] = {
        "a": torch.zeros(4),
        "b": torch.ones(2, 3, dtype=torch.bfloat16),
        "n": torch.tensor(3),
    }
    digest = weights_digest(state)
    assert weights_digest(dict(reversed(state.items()))) == digest
    assert weights_digest({**state, "a": torch.zeros(8)[::2]}) == digest  # the same numbers, other strides
    changes = [
        {**state, "a": torch.tensor([0.0, 0.0, 0.0, 1e-30])},
        {**state, "a": torch.zeros(2, 2)},
        {**state, "a": torch.zeros(4, dtype=torch.int32)},
        {"c": state["a"], "b": state["b"], "n": state["n"]},
        {**state, "n": torch.tensor(4)},
    ]
    assert len({digest, *map(weights_digest, changes)}) == 1 + len(changes)
