"""Write files that are whole or not there."""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from glob import escape
from pathlib import Path

READABLE = 0o666
"""Mode of a new file, less what the process's umask takes away."""


def write(path: Path, content: str | bytes, mode: int = READABLE) -> None:
    """Replace a file at once: write beside it, sync, rename.

    A symbolic link is followed. A file that is there keeps its mode. What is no regular file, such as a pipe or
    `/dev/stdout`, is written into, since a rename would put a file in its place.

    Args:
        path: The file.
        content: What it is to hold; text is written in UTF-8, with escapes for bytes of names that are no UTF-8.
        mode: Mode of a file that is not there yet, less the umask.

    Raises:
        OSError: The file cannot be written; what it held before is left as it was.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    held = os.stat(path) if path.exists() else None
    if (held and not stat.S_ISREG(held.st_mode)) or os.path.realpath(path.parent).startswith(("/dev", "/proc")):
        with path.open("wb") as stream:
            stream.write(data)
        return
    target = Path(os.path.realpath(path))
    kept = stat.S_IMODE(held.st_mode) if held else None
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode if kept is None else kept)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if kept is not None:
            with suppress(OSError):  # a file system without modes has none to keep, and the umask only narrows
                os.chmod(temporary, kept)
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def sweep(path: Path) -> None:
    """Remove what writers of a file left beside it when they were killed; nobody may be writing it."""
    for left in path.parent.glob(f".{escape(path.name)}.*"):
        left.unlink()
