"""A server to download from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.hostile_web import HostileWeb


@pytest.fixture
def web() -> Iterator[HostileWeb]:
    with HostileWeb() as server:
        yield server
