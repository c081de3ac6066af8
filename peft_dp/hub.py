"""The Hugging Face hub, asked once whether it answers; a download without a network tries again for half a minute."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Thread

from peft_dp.validate import Missing

SECONDS = 5.0
"""How long the hub may take to answer."""


def get(download: Callable[..., str], what: str, remedy: str, lacking: Callable[[Path], str] = lambda path: "") -> Path:
    """Return what a function of `huggingface_hub` finds in its local cache, or else downloads.

    The hub is asked for nothing that the cache holds whole.

    Args:
        download: The function; it takes `local_files_only`.
        what: Name of the thing.
        remedy: What to do where neither has it.
        lacking: Names what a cached copy lacks, given its path; empty where it is whole.

    Raises:
        Missing: Neither has it; the message says what, why, and the remedy.
    """
    from huggingface_hub import constants

    # Versions of huggingface_hub let different errors through, some of unrelated types; all mean the same here.
    path: Path | None
    try:
        path = Path(download(local_files_only=True))
        lacks = lacking(path)
    except Exception as error:
        path, lacks = getattr(error, "snapshot_path", None), "some of its files"
    if path and not lacks:
        return path
    held = f"is in the local cache without {lacks} ({path})" if path else "is not in the local cache"
    why = "is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else fault()
    if not why:
        try:
            return Path(download(local_files_only=False))
        except Exception as error:
            why = f"did not give it ({type(error).__name__})"
    raise Missing(f"{what} {held} and the hub {why}: {remedy}")


def fault() -> str:
    """Return why the hub gives nothing, such as "cannot be reached (ConnectError)"; empty where it answers."""
    from huggingface_hub import constants

    return _ask(constants.ENDPOINT, SECONDS)


@cache
def _ask(address: str, seconds: float) -> str:
    """Ask in a thread, since looking up a name may outlast any timeout."""
    from huggingface_hub import get_session

    failures: list[str] = []

    def ask() -> None:
        try:
            get_session().head(address, timeout=seconds).raise_for_status()
            failures.append("")
        except Exception as error:  # huggingface_hub and httpx raise several unrelated types
            failures.append(f"cannot be reached ({type(error).__name__})")

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return failures[0] if failures else f"gave no answer in {seconds:g} s"
