"""Hears from the cloud that this machine will be taken away, and asks for a stop with a checkpoint.

SIGTERM is the common announcement (SLURM, Kubernetes, most platforms) and needs nothing from here. Spot machines on
bare virtual machines only learn it from their metadata service, which a thread asks every few seconds, on local rank 0
of each node. What is asked, and the notice that one gets:

- AWS: ``spot/instance-action`` through IMDSv2, two minutes
  (docs.aws.amazon.com: "Spot Instance interruption notices")
- Google Cloud: ``instance/preempted``, thirty seconds (cloud.google.com: "Spot VMs")
- Azure: an event ``Preempt`` in ``scheduledevents``, at least thirty seconds (learn.microsoft.com: "Scheduled Events")
- a file that some other program makes: for everything else

A service that does not answer is asked again; it is said once. Nothing of what it answers is trusted further than
being shown.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

_PERIOD_S = 2.0
_TIMEOUT_S = 2.0
_MOST_BYTES = 1 << 20
_TOKEN_LIFE_S = 21600

ADDRESSES = {
    "aws": "http://169.254.169.254",
    "gcp": "http://metadata.google.internal",
    "azure": "http://169.254.169.254",
}

# Metadata is on this machine's own link: a proxy would ask its own machine's.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Preemption:
    """Asks ``source`` (see `FaultConfig.preemption`) until it announces the end, then calls ``announced`` once."""

    def __init__(
        self,
        source: str,
        announced: Callable[[str], None],
        say: Callable[[str], None],
        *,
        address: str | None = None,
        period_s: float = _PERIOD_S,
    ) -> None:
        self._source, self._announced, self._say, self._period_s = source, announced, say, period_s
        self._address = address or ADDRESSES.get(source, "")
        self._token: str | None = None
        self._old = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ssmke-preemption", daemon=True)

    def start(self) -> None:
        """Begins to ask, unless there is nobody to be asked."""
        if self._source == "off":
            return
        if self._source.startswith("/") and Path(self._source).exists():
            self._old = True
            self._say(f"--faults.preemption {self._source} exists already: it counts when it is made anew")
        self._thread.start()

    def close(self) -> None:
        """Asks no more."""
        self._stopping.set()

    def _watch(self) -> None:
        told = False
        while not self._stopping.is_set():
            try:
                notice = self._ask()
            except Exception as error:  # whatever answers there: the watch must go on
                if not told:
                    self._say(
                        f"--faults.preemption {self._source}: no answer from {self._address} ({error}); asked again "
                        "every few seconds"
                    )
                    told = True
                notice = None
            if notice is not None:
                self._announced(notice)
                return
            self._stopping.wait(self._period_s)

    def _ask(self) -> str | None:
        if self._source == "aws":
            return self._ask_aws()
        if self._source == "gcp":
            url = "/computeMetadata/v1/instance/preempted"
            answer = self._get(url, {"Metadata-Flavor": "Google"})
            return "a preemption notice of Google Cloud" if answer.strip().upper() == "TRUE" else None
        if self._source == "azure":
            return self._ask_azure()
        there = Path(self._source).exists()
        if self._old and there:
            return None
        self._old = False
        return f"{self._source}, which has appeared" if there else None

    def _ask_aws(self) -> str | None:
        if self._token is None:
            life = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
            self._token = self._get("/latest/api/token", life, method="PUT")
        try:
            answer = self._get(
                "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": self._token}
            )
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token has run out
                self._token = None
                return None
            if error.code == 404:  # nothing is announced
                return None
            raise
        action = json.loads(answer)
        if not isinstance(action, dict) or action.get("action") not in ("terminate", "stop", "hibernate"):
            raise ValueError("not an action")
        return f"a spot notice of AWS: {action['action']} at {action.get('time')!r}"

    def _ask_azure(self) -> str | None:
        answer = json.loads(
            self._get("/metadata/scheduledevents?api-version=2020-07-01", {"Metadata": "true"})
        )
        events = answer.get("Events", []) if isinstance(answer, dict) else None
        if not isinstance(events, list):
            raise ValueError("no list of events")
        for event in events:
            if isinstance(event, dict) and event.get("EventType") == "Preempt":
                return f"a preemption notice of Azure: not before {event.get('NotBefore')!r}"
        return None

    def _get(self, path: str, headers: dict[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(self._address + path, headers=headers, method=method)
        with _DIRECT.open(request, timeout=_TIMEOUT_S) as answer:
            text: str = answer.read(_MOST_BYTES).decode("utf-8", "replace")
        return text
