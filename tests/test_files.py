"""Files are replaced at once, and what stands in their place stays what it is."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from peft_dp.files import sweep, write
from peft_dp.suite.cli.main import main


def mode(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_mode_is_kept(tmp_path: Path) -> None:
    """A file that its owner alone may read stays so; a new one is as the umask says."""
    path = tmp_path / "page.html"
    path.write_text("old")
    path.chmod(0o600)
    before = os.umask(0o027)
    try:
        write(path, "new")
        write(tmp_path / "other.html", "new")
    finally:
        os.umask(before)

    assert ("new", 0o600) == (path.read_text(), mode(path))
    assert 0o640 == mode(tmp_path / "other.html")


def test_link_is_followed(tmp_path: Path) -> None:
    """A symbolic link stays one, and what it leads to is replaced, or made."""
    (tmp_path / "real").mkdir()
    for name in ("there", "not yet"):
        link, target = tmp_path / f"{name}.link", tmp_path / "real" / name
        if name == "there":
            target.write_text("old")
        link.symlink_to(target)
        write(link, "new")

        assert link.is_symlink()
        assert "new" == target.read_text()
    assert {"there", "not yet"} == {path.name for path in (tmp_path / "real").iterdir()}


def test_pipe_is_written_into(tmp_path: Path) -> None:
    """A named pipe stays one, and its reader gets the content."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    write(pipe, "content")
    reader.join(timeout=30)

    assert ["content"] == got
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.parametrize("redirected", [False, True], ids=["pipe", "file"])
def test_standard_output(tmp_path: Path, redirected: bool) -> None:
    """`/dev/stdout` takes what is written, behind what was printed before."""
    code = "from pathlib import Path; from peft_dp.files import write; print('first', flush=True); "
    code += "write(Path('/dev/stdout'), 'second')"
    file = tmp_path / "out"
    with file.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=out if redirected else subprocess.PIPE, cwd=Path.cwd(), check=True
        )
    said = file.read_text() if redirected else done.stdout.decode()

    assert said.endswith("second")


def test_null_device() -> None:
    """A device stays a device."""
    write(Path(os.devnull), "content")

    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_full_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A device that takes nothing is an error of the writer, in one line of the command line."""
    with pytest.raises(OSError):
        write(Path("/dev/full"), "content")
    code = main(["plan", "embedded/smoke/head", "--durations", "/dev/full"])

    assert 2 == code
    assert "/dev/full cannot be written" in capsys.readouterr().err
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails leaves the old file and nothing beside it; `sweep` removes what a killed one left."""
    path = tmp_path / "record.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError):
            write(path, "new")
    (tmp_path / ".record.json.1f2e3d4c").write_text("half")
    sweep(path)

    assert ["record.json"] == [left.name for left in tmp_path.iterdir()]
    assert "old" == path.read_text()


def test_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that refuses to set modes takes files all the same."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    for content in ("first", "second"):
        write(tmp_path / "record.json", content)

    assert "second" == (tmp_path / "record.json").read_text()
