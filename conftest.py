"""Loads the suite's plugin in a clone that is not installed; where it is, pytest has it already."""

pytest_plugins = ["peft_dp.suite.plugin"]
