"""Packages: `peft_dp` as it lies here, and in it the tables and the bench, which lie beside it for people to find."""

from setuptools import find_packages, setup

BESIDE = {"peft_dp.expected": "expected", "peft_dp.bench": "bench"}

setup(packages=[*find_packages(include=["peft_dp*"]), *BESIDE], package_dir=BESIDE)
