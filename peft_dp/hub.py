"""The Hugging Face hub, asked once whether it answers; a download without a network tries again for half a minute."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from threading import Thread

from peft_dp.validate import Missing

SECONDS = 5.0
"""How long it may take to answer."""


def get(download: Callable[..., str], what: str, remedy: str) -> Path:
    """What a function of `huggingface_hub` downloads, or finds in its local cache where the hub does not answer.

    Raises:
        Missing: Neither has it; says what, why, and the remedy.
    """
    why = fault()
    try:
        return Path(download(local_files_only=bool(why)))
    # Its versions differ in the errors they let through, some of them unrelated types; all mean the same here.
    except Exception as error:
        why = why or f"did not give it ({type(error).__name__})"
        raise Missing(f"{what} is not in the local cache and the hub {why}: {remedy}") from None


def fault() -> str:
    """Why the hub gives nothing, such as "cannot be reached (ConnectError)"; empty where it answers."""
    from huggingface_hub import constants

    return _ask(constants.ENDPOINT, SECONDS)


@cache
def _ask(address: str, seconds: float) -> str:
    """In a thread, since looking up a name may outlast any timeout."""
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
