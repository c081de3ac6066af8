"""What a record says of the machine and the code."""

from __future__ import annotations

import json
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from peft_dp.measuring import environment as module
from peft_dp.measuring.environment import environment, versions


def test_keys() -> None:
    """Machine, threads, workers, versions and revision are there, as JSON values."""
    found = environment()
    filled = {"system", "python", "cpu", "cores", "threads", "side_by_side"}

    assert filled | {"gpu", "cuda", "versions", "revision", "dirty"} <= set(found)
    assert found == json.loads(json.dumps(found))
    assert all(found[name] for name in filled)


def test_versions() -> None:
    """Each pin has the version that is installed."""
    found = versions()

    assert set(module.PINS) == set(found)
    assert (version("torch"), version("opacus")) == (found["torch"], found["opacus"])


def test_package_that_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is not installed is null, not an error."""
    monkeypatch.setattr(module, "PINS", ("torch", "no-such-package"))
    versions.cache_clear()
    found = versions()
    versions.cache_clear()

    assert found == {"torch": version("torch"), "no-such-package": None}


def _git(folder: Path, *words: str) -> str:
    author = ("-c", "user.name=n", "-c", "user.email=e@x")
    return subprocess.run(
        ["git", "-C", folder, *author, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_revision(tmp_path: Path) -> None:
    """The revision is the commit; the tree is dirty once a file of it changes."""
    _git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("x = 1")
    _git(tmp_path, "add", "a.py")
    _git(tmp_path, "commit", "-q", "-m", "one")
    head = _git(tmp_path, "rev-parse", "HEAD")
    clean = module._git(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")

    assert {"revision": head, "dirty": False} == clean
    assert {"revision": head, "dirty": True} == module._git(tmp_path)


def test_no_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a checkout revision and state are null."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert {"revision": None, "dirty": None} == module._git(tmp_path)


def test_no_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So they are on a machine without git."""
    monkeypatch.setenv("PATH", str(tmp_path))

    assert {"revision": None, "dirty": None} == module._git(tmp_path)


def test_whole_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change anywhere in the package makes the environment dirty, not only one beside this module."""
    package = tmp_path / "package"
    (package / "measuring").mkdir(parents=True)
    (package / "job.py").write_text("x = 1")
    _git(tmp_path, "init", "-q")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "one")
    (package / "job.py").write_text("x = 2")
    monkeypatch.setattr(module, "__file__", str(package / "measuring" / "environment.py"))
    environment.cache_clear()
    found = environment()
    environment.cache_clear()

    assert found["dirty"] is True


def test_library_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit of a library's file changes its hash, although its version stays."""
    package = tmp_path / "edited_library"
    package.mkdir()
    (package / "__init__.py").write_text("SCALE = 1.0\n")
    (tmp_path / "edited_library-1.0.dist-info").mkdir()
    (tmp_path / "edited_library-1.0.dist-info" / "METADATA").write_text("Name: edited_library\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(module, "LIBRARIES", ("edited_library", "no_such_library"))
    found = []
    for text in ("SCALE = 1.0\n", "SCALE = 1.1\n"):
        (package / "__init__.py").write_text(text)
        module.library_sources.cache_clear()
        found.append(module.library_sources())
    origin = {"url": "u", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}
    (tmp_path / "edited_library-1.0.dist-info" / "direct_url.json").write_text(json.dumps(origin))
    module.library_sources.cache_clear()
    from_commit = module.library_sources()["edited_library"]
    module.library_sources.cache_clear()

    assert ["edited_library"] == list(found[0])
    assert found[0] != found[1]
    assert f"0123456789ab {found[1]['edited_library']}" == from_commit
