"""Two hosts on one machine, joined by a cable that can be pulled: where several nodes can be tried without a cluster.

A host is a process tree of its own in new network, mount, UTS, IPC and PID namespaces: its own name, address,
/dev/shm, ssh daemon, keys and one disk (`own`) that the other does not see; the rest of the file system is the
machine's, as a shared one would be. Nothing outside the namespaces is touched, and they end with the pipe
that their first process waits on: whatever happens to the tests, the kernel takes everything away. It takes
0.3 s, root, sshd and pdsh.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

CABLE = "cable0"
PROGRAMS = ("ip", "unshare", "nsenter", "mount", "ssh", "ssh-keygen", "pdsh", "sshd")
NAMES = {"node-1": "10.231.77.1", "node-2": "10.231.77.2"}
_PATH = f"{os.environ.get('PATH', '')}{os.pathsep}/usr/sbin{os.pathsep}/sbin"

_FIRST_PROCESS = r"""
set -e
name=$1 etc=$2 own=$3
mount --make-rprivate /
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs "$own"
if [ -d ~/.ssh ]; then mount -t tmpfs tmpfs ~/.ssh; fi
mount --bind "$etc/hosts" /etc/hosts
mount --bind "$etc/ssh" /etc/ssh
hostname "$name"
mkdir /run/sshd
ip link set lo up
echo there
read -r cabled
"$(command -v sshd)" -f /etc/ssh/sshd_config -E "$etc/sshd.log"
echo listening
read -r ended
"""
"""PID 1 of a host: when its pipe ends, it ends, and with it every process of the host."""


def missing() -> str | None:
    """Why two hosts cannot be made here, None where they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "two hosts on one machine need root"
    absent = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    if absent:
        return f"two hosts on one machine need {', '.join(absent)}"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork",
         "ip", "link", "add", "try-0", "type", "veth", "peer", "name", "try-1"],
        capture_output=True, text=True, check=False, env={**os.environ, "PATH": _PATH},
    )  # fmt: skip
    return None if tried.returncode == 0 else f"no namespaces or no veth here: {tried.stderr.strip()}"


@dataclass(frozen=True)
class Host:
    """One of the two."""

    name: str
    address: str
    init: int
    """Its first process, as the machine numbers it."""
    own: Path
    """A folder that has other files on every host: a disk of its own."""
    _pipe: subprocess.Popen[str]

    def command(self, *command: str) -> list[str]:
        """``command``, to be started on this host (in ``/``, where entering a mount namespace leads)."""
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-u", "-i", "-p", "--", *command]

    def run(self, *command: str) -> str:
        """What ``command`` prints, run on this host."""
        return subprocess.run(
            self.command(*command), check=True, stdout=subprocess.PIPE, text=True, env=plain_environment()
        ).stdout

    def kill(self) -> None:
        """Every process of the host at once, as when its power fails: no packet says goodbye."""
        pull(self)
        self._pipe.kill()
        self._pipe.wait()


@dataclass(frozen=True)
class TwoHosts:
    """Both, and the folder that both see."""

    first: Host
    second: Host
    hostfile: Path
    folder: Path
    """Seen by both; DeepSpeed is to be started in it, for it holds `.deepspeed_env`."""

    def deepspeed(self, script: Sequence[str], *, master_port: int = 29500) -> list[str]:
        """DeepSpeed's own command line, on the first host, for one rank on each."""
        launcher = [str(Path(sys.executable).parent / "deepspeed"), "--hostfile", str(self.hostfile)]
        started = ["env", "-C", str(self.folder), *launcher, "--master_port", str(master_port), *script]
        return self.first.command(*started)


def pull(host: Host) -> None:
    """Pulls the cable out of ``host``: nothing comes in or goes out, and the other side gets no answer."""
    host.run("ip", "link", "set", CABLE, "down")


def plug(host: Host) -> None:
    """Plugs it in again."""
    host.run("ip", "link", "set", CABLE, "up")


def plain_environment() -> dict[str, str]:
    """For what is started on a host: its programs' paths, no GPU, and ssh that notices a dead peer."""
    alive = "-o ServerAliveInterval=5 -o ServerAliveCountMax=3"
    path = f"{Path(sys.executable).parent}{os.pathsep}{_PATH}"
    return {**os.environ, "PATH": path, "CUDA_VISIBLE_DEVICES": "", "PDSH_SSH_ARGS_APPEND": alive}


@contextmanager
def two_hosts(folder: Path, exports: Mapping[str, str]) -> Iterator[TwoHosts]:
    """``node-1`` and ``node-2``, with passwordless ssh between them; gone when the block ends, however it ends.

    ``exports`` are added to what `.deepspeed_env` gives every rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = _ssh_keys(folder)
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in NAMES))
    given = {
        "PATH": plain_environment()["PATH"],
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": CABLE,
        **exports,
    }
    (folder / ".deepspeed_env").write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(_host(name, address, folder, key)) for name, address in NAMES.items()
        )
        _ip("link", "add", CABLE, "netns", str(first.init), "type", "veth",
            "peer", "name", CABLE, "netns", str(second.init))  # fmt: skip
        for host in (first, second):
            host.run("ip", "address", "add", f"{host.address}/24", "dev", CABLE)
            host.run("ip", "link", "set", CABLE, "up")
            _tell(host._pipe, "cabled", "listening")
        yield TwoHosts(first, second, hostfile, folder)


@contextmanager
def _host(name: str, address: str, folder: Path, key: Path) -> Iterator[Host]:
    etc, own = folder / "etc" / name, folder / "own"
    own.mkdir(exist_ok=True)
    _configure_ssh(etc, name, key)
    known = "".join(f"{there} {other}\n" for other, there in NAMES.items())
    # A host's own name leads to loopback, as Debian has it: what ranks tell each other must not come from there.
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name}\n{known}")
    namespaces = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["unshare", *namespaces, "bash", "-c", _FIRST_PROCESS, "host", name, str(etc), str(own)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=plain_environment(),
    )  # fmt: skip
    try:
        _expect(process.stdout, "there")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield Host(name, address, int(children[0]), own, process)
    finally:
        process.kill()  # unshare's child is killed with it, and with that PID 1 the host
        process.communicate()


def _ssh_keys(folder: Path) -> Path:
    """A key for the user and one for each host, and who is known; returns the user's."""
    keys = folder / "keys"
    keys.mkdir(mode=0o700)
    for name in ("user", *NAMES):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(keys / name)], check=True
        )
    known = [
        f"{name},{address} {(keys / f'{name}.pub').read_text().strip()}\n" for name, address in NAMES.items()
    ]
    (keys / "known_hosts").write_text("".join(known))
    return keys / "user"


def _configure_ssh(etc: Path, name: str, key: Path) -> None:
    (etc / "ssh").mkdir(parents=True)
    keys = key.parent
    daemon = {
        "HostKey": keys / name, "AuthorizedKeysFile": f"{key}.pub", "StrictModes": "no", "UsePAM": "no",
        "PasswordAuthentication": "no", "PermitRootLogin": "yes", "PidFile": "/run/sshd.pid",
    }  # fmt: skip
    client = {
        "IdentityFile": key, "IdentitiesOnly": "yes", "GlobalKnownHostsFile": keys / "known_hosts",
        "UserKnownHostsFile": "/dev/null", "StrictHostKeyChecking": "yes", "BatchMode": "yes",
    }  # fmt: skip
    for file, settings in (("sshd_config", daemon), ("ssh_config", client)):
        (etc / "ssh" / file).write_text("".join(f"{name} {value}\n" for name, value in settings.items()))


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, env=plain_environment())


def _tell(process: subprocess.Popen[str], word: str, answer: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    _expect(process.stdout, answer)


def _expect(output: IO[str] | None, word: str) -> None:
    assert output is not None
    said = output.readline().strip()
    if said != word:
        raise RuntimeError(f"a host said {said!r} instead of {word!r}")
