"""Private addresses are told in any spelling, by the same file that another python runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ssmke.data.download.guard import sockets
from ssmke.data.download.guard.sockets import Refused, is_private, refuse_private_literal


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.1.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::1", True),
        ("::", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("ff02::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("64:ff9b::7f00:1", True),
        ("2002:7f00:1::", True),
        ("::127.0.0.1", True),
        ("::10.0.0.1", True),
        ("fec0::1", True),
        ("feff::1", True),
        ("64:ff9b:1::7f00:1", True),
        ("64:ff9b:1::808:808", True),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("::ffff:8.8.8.8", False),
        ("64:ff9b::808:808", False),
        ("::8.8.8.8", False),
        ("64:ff9b:2::1", False),
    ],
)
def test_private_addresses(address: str, private: bool) -> None:
    assert is_private(address) is private


@pytest.mark.parametrize(
    "host",
    [
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "169.254.169.254.",
        "10.1",
        "localhost",
        "LOCALHOST.",
        "x.localhost.",
        "%6cocalhost",
        "[::127.0.0.1]",
        "[fec0::1]",
        "[fe80::1%25eth0]",
        "user@127.1:80",
    ],
)
def test_spellings_of_private_addresses(host: str) -> None:
    with pytest.raises(Refused, match="private address"):
        refuse_private_literal(f"http://{host}/x.jpg")


@pytest.mark.parametrize(
    "host",
    [
        "a.org",
        "8.8.8.8",
        "8.8.8.8.",
        "134744072",
        "localhost.org",
        "10.org",
        "127.1.a.org",
        "[2606:4700::1111]",
    ],
)
def test_names_and_public_addresses_are_left_to_the_proxy(host: str) -> None:
    refuse_private_literal(f"http://{host}/x.jpg")


def test_the_files_of_the_guard_need_no_package_around_them() -> None:
    folder = Path(sockets.__file__).parent
    code = (
        "import bounded, sockets, sys; assert bounded.sockets is sockets; assert 'ssmke' not in sys.modules"
    )
    subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(folder)!r}); {code}"],
        check=True,
    )


def test_all_files_of_the_guard_travel_to_spark() -> None:
    folder = Path(sockets.__file__).parent
    program = (folder / "main.py").read_text()
    [sent] = re.findall(r"for module in \((.*?)\):", program)
    assert {name.strip(' "') for name in sent.split(",")} == {path.stem for path in folder.glob("*.py")} - {
        "main",
        "__init__",
    }
