"""An index of real shards by a real student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ssmke.models.dual_encoder import DualEncoder, load_dual_encoder
from ssmke.search.build import IndexConfig, build_index
from ssmke.search.sources import open_sources


@pytest.fixture(scope="session")
def encoder(model_dir: Path) -> DualEncoder:
    return load_dual_encoder(str(model_dir), torch.device("cpu"))


@pytest.fixture(scope="session")
def index_dir(encoder: DualEncoder, shards_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both splits of `shards_dir`: 20 of 23 and 6 images."""
    folder = tmp_path_factory.mktemp("search") / "index"
    build_index(encoder, open_sources([str(shards_dir)]), folder, IndexConfig(batch_size=5, threads=2))
    return folder
