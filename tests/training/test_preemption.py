"""Notices of the clouds, from a server that answers as their metadata services do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from ssmke.errors import ConfigError
from ssmke.training.faults import FaultConfig
from ssmke.training.preemption import Preemption

Answer = Callable[[str, str, dict[str, str]], tuple[int, str]]


class Metadata:
    """A metadata service; ``answer(method, path, headers)`` gives status and body."""

    def __init__(self) -> None:
        self.answer: Answer = lambda method, path, headers: (404, "")
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append(f"{self.command} {self.path}")
                headers = {name.lower(): value for name, value in self.headers.items()}
                status, body = service.answer(self.command, self.path, headers)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            do_PUT = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    service = Metadata()
    yield service
    service.close()


class Watch:
    """A watch of ``source`` and what it heard."""

    def __init__(self, source: str, address: str | None = None) -> None:
        self.said: list[str] = []
        self.notices: list[str] = []
        self._heard = threading.Event()
        self._preemption = Preemption(source, self._hear, self.said.append, address=address, period_s=0.01)
        self._preemption.start()

    def _hear(self, notice: str) -> None:
        self.notices.append(notice)
        self._heard.set()

    def notice(self, seconds: float = 10.0) -> str:
        assert self._heard.wait(seconds), self.said
        self._preemption.close()
        return self.notices[0]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def test_aws(metadata: Metadata) -> None:
    state = {"action": "", "token": "first"}

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if path == "/latest/api/token":
            sent = headers.get("x-aws-ec2-metadata-token-ttl-seconds", "")
            return (200, state["token"]) if method == "PUT" and sent.isdigit() else (405, "")
        assert path == "/latest/meta-data/spot/instance-action"
        if headers.get("x-aws-ec2-metadata-token") != state["token"]:
            return 401, ""
        return (200, state["action"]) if state["action"] else (404, "")

    metadata.answer = answer
    watch = Watch("aws", metadata.address)
    wait_for(lambda: len(metadata.asked) > 5)
    state["token"] = "second"  # the first one has run out
    wait_for(lambda: metadata.asked.count("PUT /latest/api/token") == 2)
    assert not watch.notices
    state["action"] = '{"action": "terminate", "time": "2026-11-24T08:22:00Z"}'
    assert watch.notice() == "a spot notice of AWS: terminate at '2026-11-24T08:22:00Z'"


def test_google_cloud(metadata: Metadata) -> None:
    state = {"preempted": "FALSE"}

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        asked = (
            path == "/computeMetadata/v1/instance/preempted" and headers.get("metadata-flavor") == "Google"
        )
        return (200, state["preempted"]) if asked else (403, "")

    metadata.answer = answer
    watch = Watch("gcp", metadata.address)
    wait_for(lambda: len(metadata.asked) > 3)
    assert not watch.notices
    assert not watch.said
    state["preempted"] = "TRUE"
    assert watch.notice() == "a preemption notice of Google Cloud"


def test_azure(metadata: Metadata) -> None:
    events = '{"DocumentIncarnation": 1, "Events": [{"EventType": "Reboot"}%s]}'
    state = {"more": ""}

    def answer(method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        asked = (
            path.startswith("/metadata/scheduledevents?api-version=") and headers.get("metadata") == "true"
        )
        return (200, events % state["more"]) if asked else (400, "")

    metadata.answer = answer
    watch = Watch("azure", metadata.address)
    wait_for(lambda: len(metadata.asked) > 3)
    assert not watch.notices
    state["more"] = ', {"EventType": "Preempt", "NotBefore": "Tue, 24 Nov 2026 18:29:47 GMT"}'
    assert "Azure: not before 'Tue, 24 Nov 2026 18:29:47 GMT'" in watch.notice()


@pytest.mark.parametrize("source", ["aws", "gcp", "azure"])
@pytest.mark.parametrize(
    "body", ["", "[]", "{", '{"Events": 3}', '"x"', "\x00\xff", '{"Events": [null, 1, {}]}']
)
def test_an_answer_that_makes_no_sense_is_no_notice(metadata: Metadata, source: str, body: str) -> None:
    metadata.answer = lambda method, path, headers: (200, body)
    watch = Watch(source, metadata.address)
    wait_for(lambda: len(metadata.asked) > 4)
    assert not watch.notices


def test_a_service_that_is_not_there_is_said_once_and_asked_again(metadata: Metadata) -> None:
    metadata.answer = lambda method, path, headers: (500, "")
    watch = Watch("gcp", metadata.address)
    wait_for(lambda: len(metadata.asked) > 5)
    assert len(watch.said) == 1
    assert "no answer" in watch.said[0]
    metadata.answer = lambda method, path, headers: (200, "TRUE")
    assert watch.notice()


def test_a_file(tmp_path: Path) -> None:
    watch = Watch(str(tmp_path / "leave"))
    (tmp_path / "leave").touch()
    assert watch.notice() == f"{tmp_path / 'leave'}, which has appeared"


@pytest.mark.parametrize("source", ["amazon", "leave", "/no/such/folder/leave"])
def test_a_source_that_cannot_be_is_refused(source: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--faults\.preemption .*: must be off, aws, gcp, azure, or the absolute"
    ):
        FaultConfig(preemption=source)
