"""The environment of img2dataset: found, made, mended, or one clear error."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest

from ssmke.data.download import environment
from ssmke.data.download.environment import child_environment, img2dataset_python, require
from ssmke.errors import DataError


def test_it_is_made_once_and_told_of(img2dataset: Path) -> None:
    said: list[str] = []
    assert img2dataset_python(None, said.append) == img2dataset
    assert said == []
    assert img2dataset_python(str(img2dataset)) == img2dataset


def test_without_a_package_index_there_is_one_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    # A run that was killed left this; it must not be taken for an environment.
    folder = tmp_path / environment._name()
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").write_text("half")
    (folder / "old").write_text("old")
    said: list[str] = []
    with pytest.raises(DataError, match=r"pip install failed: ERROR.*img2dataset.*--img2dataset PYTHON"):
        img2dataset_python(None, said.append, cache=tmp_path)
    assert not (folder / "old").exists()
    assert not (folder / "ssmke-whole").exists()
    assert len(said) == 1
    assert "about 780 MB" in said[0]


def test_an_environment_that_cannot_be_begun(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="cannot write"):
        img2dataset_python(None, cache=tmp_path / "file")


def test_other_requirements_are_another_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = environment._name()
    changed = tmp_path / "requirements.txt"
    changed.write_text(environment.REQUIREMENTS.read_text() + "tqdm\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", changed)
    assert before.startswith("img2dataset-1.47.0-py3.")
    assert environment._name() != before


def test_pythons_without_img2dataset_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--img2dataset .*absent: there is no such program"):
        img2dataset_python(str(tmp_path / "absent"))
    venv.create(tmp_path / "bare", with_pip=False)
    with pytest.raises(DataError, match=r"no usable img2dataset: .*No module named"):
        img2dataset_python(str(tmp_path / "bare" / "bin" / "python"))
    with pytest.raises(DataError, match=r"no usable img2dataset"):
        img2dataset_python("false")


def test_distributors_must_be_there(img2dataset: Path) -> None:
    require(img2dataset, "wandb")
    with pytest.raises(DataError, match=r"--distributor ray: .* has no ray.*--img2dataset PYTHON"):
        require(img2dataset, "ray")


def test_our_own_packages_do_not_reach_the_other_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", sys.path[-1])
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.invalid/simple")
    passed = child_environment({"MORE": "1"})
    assert "PYTHONPATH" not in passed
    assert passed["PIP_INDEX_URL"] == "https://mirror.invalid/simple"
    assert passed["MORE"] == "1"
