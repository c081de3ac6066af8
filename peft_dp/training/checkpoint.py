"""A run that was killed goes on to the same bits: its state between two steps, in one file that is whole or not there.

A step repeats from such a state: it draws the same batch and the same noise and makes the same update. So what ran
after the last checkpoint and was lost is released once, whatever was killed when, and is counted once.

A file is its owner's alone: it has the weights of a private run and the state of its noise.
"""

from __future__ import annotations

import hashlib
import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from peft_dp import files

SECONDS = 60.0
"""Between two checkpoints, and as many more times as one takes seconds: 1/60 of the time at most goes into them.

A run that is shorter has none.
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class State:
    """What a run is between two steps.

    Attributes:
        tensors: Name -> tensor, on any device.
        values: What is no tensor, as JSON has it.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class Stopped(SystemExit, KeyboardInterrupt):
    """A signal stopped a run after a step, and its state is kept.

    Both at once, so that pytest ends its session and Python ends with the code that shells give the signal.
    """


class Checkpoint:
    """Where a run keeps its state.

    As a context it has the first SIGTERM or Ctrl-C wait for the end of a step; a second one acts at once. Signals
    stay as they are outside the main thread, which alone can take them.

    Args:
        path: The file; nobody else may write it meanwhile.
        every: Seconds from one checkpoint to the next, see `SECONDS`; 0 for one after each step.
    """

    def __init__(self, path: Path, every: float = SECONDS) -> None:
        self.path = path
        self._every = every
        self._signal = 0
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._due = time.monotonic() + self._every
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell sets it for what runs behind it
                    self._handlers[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._release()
        if kind is None and self._signal:  # it came after the last step
            signal.raise_signal(self._signal)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._signal = number
        self._release()

    def _release(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def keep(self, state: Callable[[], State]) -> None:
        """Called after each step: writes the state where it is time for that.

        A file that cannot be written is no reason to stop a run.

        Raises:
            Stopped: A signal came.
        """
        begin = time.monotonic()
        if not self._signal and begin < self._due:
            return
        try:
            files.write(self.path, _bytes(state()), mode=0o600)
        except OSError as error:
            _log.warning("checkpoint %s cannot be written (%s): there is no newer one", self.path, error.strerror)
        end = time.monotonic()
        self._due = end + self._every * max(1.0, end - begin)
        if self._signal:
            _log.warning("stopped: started again with the same records folder, the run goes on from %s", self.path)
            raise Stopped(128 + self._signal)

    def load(self) -> State | None:
        """The state that was kept last; None if there is none. A damaged file is set aside."""
        files.sweep(self.path)
        if not self.path.exists():
            return None
        try:
            return _state(self.path)
        except (ValueError, SafetensorError) as error:
            aside = self.path.rename(f"{self.path}.damaged")
            _log.warning("%s is damaged (%s): set aside as %s, trained from the start", self.path, error, aside.name)
            return None

    def remove(self) -> None:
        """Removes the file, once the record is safe."""
        self.path.unlink(missing_ok=True)


def _bytes(state: State) -> bytes:
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}
    values = json.dumps(state.values)
    return save(tensors, {"values": values, "sha256": _sha256(tensors, values)})


def _state(path: Path) -> State:
    with safe_open(path, "pt") as file:
        held = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    values = held.get("values", "")
    if held.get("sha256") != _sha256(tensors, values):
        raise ValueError("its hash is another")
    return State(tensors, json.loads(values))


def _sha256(tensors: dict[str, Tensor], values: str) -> str:
    """Of all that a file says: safetensors itself sees that bytes are missing, but not that one is wrong."""
    digest = hashlib.sha256(values.encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
