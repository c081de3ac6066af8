"""A Slurm cluster of this one machine, in a folder of its own: its controller, and a node daemon for each node."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
MISSING = f"needs {', '.join(PROGRAMS)}: apt-get install slurmctld slurmd slurm-client munge"
SECONDS = 300
"""How long anything may take to happen."""

T = TypeVar("T")

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
GresTypes=gpu
SlurmdTimeout=10
KillWait=5
ReturnToService=2
SchedulerParameters=batch_sched_delay=1,sched_interval=2
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL PriorityTier=2
"""

GPUS = ("/dev/null", "/dev/zero")
"""What stands for the GPUs of a node: Slurm wants a device's file, and leaves it alone."""


def lacks() -> bool:
    """Whether this machine lacks one of the programs."""
    return not all(_program(name) for name in PROGRAMS)


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")  # where daemons are


def until(state: Callable[[], T], wanted: T) -> None:
    """Waits for a state; that it does not come is an error."""
    end = time.monotonic() + SECONDS
    while (now := state()) != wanted:
        assert time.monotonic() < end, f"after {SECONDS} s still {now}, not {wanted}"
        time.sleep(0.2)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster that runs.

    Attributes:
        environment: With which programs find it.
        daemons: Node -> its daemon.
    """

    environment: Mapping[str, str]
    daemons: Mapping[str, subprocess.Popen[bytes]]

    def ask(self, *command: str) -> str:
        """What one of Slurm's programs prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def jobs(self, states: str = "pending,running,completing") -> list[str]:
        """Jobs in some of these states; an element of an array is 7_0."""
        return self.ask("squeue", "--array", "--noheader", "--format=%i", f"--states={states}").split()

    def kill(self, node: str) -> None:
        """Kills all that runs on a node at once, as if it had lost power."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        _kill_all([node])

    def node(self, process: int) -> str:
        """The node that a process runs on."""
        return next(name for name in self.daemons if process in _of(name))


def _of(node: str) -> set[int]:
    """Processes of a node's jobs, and the daemons that watch over them."""
    found: set[int] = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"SLURMD_NODENAME={node}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                watches = "slurmstepd" in Path(f"/proc/{parent}/comm").read_text()
                found |= {int(folder.name), *[parent] * watches}
        except OSError:  # it has just ended
            continue
    return found


@contextmanager
def cluster(folder: Path, nodes: int) -> Iterator[Cluster]:
    """Runs a cluster of nodes with one core and two GPUs each; jobs in `urgent` preempt those in `main`."""
    names = [f"n{at}" for at in range(1, nodes + 1)]
    port, *ports = _ports(nodes + 1)
    line = "NodeName={} NodeHostname=localhost NodeAddr=127.0.0.1 Port={} CPUs=1 Gres=gpu:2"
    lines = "\n".join(line.format(*node) for node in zip(names, ports, strict=True))
    host, user = socket.gethostname(), getpass.getuser()
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, port=port, user=user, nodes=lines))
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={file}\n" for file in GPUS))
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    places = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
    environment = os.environ | {"SLURM_CONF": str(configuration)}

    with ExitStack() as running:

        def start(name: str, program: str, *options: str) -> subprocess.Popen[bytes]:
            log = running.enter_context((folder / f"{name}.log").open("wb"))
            command = [_program(program) or program, *options]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            running.callback(_end, process)
            return process

        start("munged", "munged", "--foreground", "--force", "--num-threads=1", *places)
        until((folder / "munge.socket").exists, True)
        start("controller", "slurmctld", "-D")
        daemons = {name: start(name, "slurmd", "-D", "-N", name) for name in names}
        running.callback(lambda: _kill_all(names))
        made = Cluster(environment=environment, daemons=daemons)
        until(lambda: _idle(made), nodes)
        yield made


def _idle(made: Cluster) -> int:
    done = subprocess.run(
        ["sinfo", "--noheader", "--Node", "--states=idle", "--partition=main"],
        env=made.environment,
        capture_output=True,
    )
    return len(done.stdout.splitlines())


def _kill_all(names: Iterable[str]) -> None:
    for process in [process for name in names for process in _of(name)]:
        _kill(process)


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):  # it has just ended
        os.kill(process, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _ports(count: int) -> list[int]:
    """That many ports that are free."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
