"""The suite as a pytest plugin, which takes no part in a session that does not ask for the suite's tests.

pytest loads this module wherever the package is installed (entry point `pytest11`), also for other projects. So it adds
the options, and loads the rest of the plugin only once `asked` says that the session is ours.
"""

from __future__ import annotations

import pytest

from peft_dp import registry
from peft_dp.suite import HOME
from peft_dp.suite.plugin.options import pytest_addoption

__all__ = ["pytest_addoption", "pytest_cmdline_main"]

PARTS = ("session", "selection", "fixtures", "workers", "benchmarks", "summary")


def asked(config: pytest.Config) -> bool:
    """Return whether a session asks for tests of this project.

    It does if its root is this repository, or if one of its arguments names a file beneath it, or, with `--pyargs`,
    this package. A worker of pytest-xdist is told by its controller.
    """
    if (told := getattr(config, "workerinput", None)) is not None:
        return "peft_records" in told
    names = [argument.partition("::")[0] for argument in config.args]
    if config.option.pyargs and any(name.partition(".")[0] == "peft_dp" for name in names):
        return True
    paths = (config.rootpath, *(config.invocation_params.dir / name for name in names))
    return config.rootpath.resolve() == HOME or any(path.resolve().is_relative_to(HOME) for path in paths)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> object:
    """Load the rest of the plugin if the session is ours, before pytest-xdist counts its workers."""
    if not asked(config):
        return (yield)
    for part in PARTS:
        config.pluginmanager.import_plugin(f"{__name__}.{part}")
    with registry.with_own(folder if (folder := config.option.peft_tables) and folder.is_dir() else None):
        return (yield)  # a folder that is none is refused with the other options
