"""Where a backbone's files are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from peft_dp import registry
from peft_dp.models.source import Source
from peft_dp.validate import Missing


def minilm() -> Source:
    """The source of the embedded backbone, whose package must be there."""
    source: Source = registry.load("backbones", "minilm").SOURCE
    assert source.package
    pytest.importorskip(source.package[0], reason="needs the embedded backbone: '.[embedded]'")
    return source


def test_folder_without_an_embedded_backbone(tmp_path: Path) -> None:
    """A folder that lacks an embedded backbone does not hide the one that a package carries."""
    (tmp_path / "roberta-base").mkdir()

    assert minilm().locate(None) == minilm().locate(tmp_path)


def test_folder_with_an_embedded_backbone(tmp_path: Path) -> None:
    """A folder that names an embedded backbone is taken at its word, even where a package carries it."""
    folder = tmp_path / "all-MiniLM-L6-v2"
    folder.mkdir()
    with pytest.raises(Missing) as caught:
        minilm().locate(tmp_path)

    assert str(caught.value).startswith(f"{folder} holds no model.safetensors: put ")


def test_folder_without_another_backbone(tmp_path: Path) -> None:
    """What no package carries is missing from a folder that lacks it, whatever the hub may hold."""
    with pytest.raises(Missing) as caught:
        registry.load("backbones", "roberta").SOURCE.locate(tmp_path)

    assert (
        f"{tmp_path / 'roberta-base'} is missing: --peft-backbones DIR needs the model's files in DIR/roberta-base"
    ) == str(caught.value)
