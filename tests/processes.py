"""Python processes that start at once: copies of one that has already imported the libraries, and nothing of ours.

Starting Python and importing torch and transformers takes seconds of processor time. Each test that needs a process of
its own would pay them; the standard library's fork server pays once.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = ["hypothesis", "opacus", "torch", "transformers.activations", "transformers.models.bert.modeling_bert"]
"""What a copied process has imported."""

_copies = get_context("forkserver")
_copies.set_forkserver_preload(LIBRARIES)
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # where a copy finds this file


@dataclass(frozen=True)
class Done:
    """A process that has ended.

    Attributes:
        code: Exit code; minus the signal's number if one ended it.
        text: Output and errors, as they came.
    """

    code: int
    text: str


def run_module(module: str, *arguments: object, cwd: Path, environment: Mapping[str, str]) -> Done:
    """Run `python -m module arguments` in a process of its own and return how it ended.

    Args:
        module: As in `python -m`.
        arguments: Words of the command line.
        cwd: Folder to run in.
        environment: All variables; PYTHONPATH counts as it does for Python.
    """
    reader, writer = _copies.Pipe(duplex=False)
    words = [module, *map(str, arguments)]
    process = _copies.Process(target=_become, args=(words, str(cwd), writer, dict(environment)))
    process.start()
    writer.close()
    with reader, os.fdopen(os.dup(reader.fileno()), errors="replace") as output:
        text = output.read()
    process.join()
    assert process.exitcode is not None
    return Done(process.exitcode, text)


def pytest_session(*arguments: object, cwd: Path = ROOT, **variables: str) -> Done:
    """Run pytest under the project's settings on one thread, without CUDA, 120 columns wide, and return how it ended.

    Args:
        arguments: Words of the command line.
        cwd: Folder to run in.
        variables: More environment variables, or others.
    """
    # A session that one worker of another starts is nobody's worker.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = own | {
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "120",
    }
    settings = ["-c", ROOT / "pyproject.toml", "--rootdir", ROOT, "-p", "no:cacheprovider"]
    # What is imported already are libraries that are plugins too; that their asserts stay as they are does not matter.
    settings += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    return run_module("pytest", *settings, *arguments, cwd=cwd, environment=environment | variables)


def _become(words: Sequence[str], cwd: str, output: Connection, environment: Mapping[str, str]) -> None:
    """Turn this process into the one that is asked for."""
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))  # noqa: SIM115
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    added = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:] = [*added, *(path for path in sys.path if path not in added)]
    sys.argv[:] = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def installed(name: str, folder: Path) -> Path:
    """Copy an installed package, with what says its version, into a folder; return the copy."""
    spec = find_spec(name)
    assert spec
    assert spec.origin
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(spec.origin).parent, folder / name, ignore=ignored)
    about = f"{name}-{distribution(name).version}.dist-info"
    shutil.copytree(Path(spec.origin).parents[1] / about, folder / about)
    return folder / name
