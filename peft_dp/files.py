"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from glob import escape
from pathlib import Path


def write(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Replaces a file at once: written beside it, synced, renamed. By default all may read it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # a temporary file is its owner's alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def sweep(path: Path) -> None:
    """Removes what writers of that file left beside it when they were killed; nobody may be writing it."""
    for left in path.parent.glob(f".{escape(path.name)}.*"):
        left.unlink()
