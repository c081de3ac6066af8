"""The hub: asked once and never for long; what it or the local cache holds is given, and what is in neither is said."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from peft_dp import hub, registry
from peft_dp.validate import Missing

COMMIT = "0" * 40


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts the hub at an address; its cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "SECONDS", 1.0)
    return lambda address: monkeypatch.setattr(constants, "ENDPOINT", address)


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that answers and holds nothing, and what it is asked."""
    asked: list[str] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        request.send_response(200 if request.path == "/" else 404)
        request.end_headers()

    answers = {"do_HEAD": answer, "do_GET": answer, "log_message": lambda *_: None}
    made = HTTPServer(("127.0.0.1", 0), type("Empty", (BaseHTTPRequestHandler,), answers))
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_port}", asked
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of a machine that takes a call and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_no_answer(at: Callable[[str], None], deaf: str) -> None:
    """A hub that says nothing is waited for as long as it is given, once for all that is wanted of it."""
    at(deaf)
    start = monotonic()
    faults = [hub.fault() for _ in range(20)]

    assert monotonic() - start < 10
    assert {faults[0]} == {*faults}
    assert faults[0] in ("gave no answer in 1 s", "cannot be reached (ReadTimeout)")


def test_no_such_machine(at: Callable[[str], None]) -> None:
    """One whose name belongs to no machine cannot be reached."""
    at("http://hub.invalid")

    assert hub.fault()


def test_asked_once(at: Callable[[str], None], server: tuple[str, list[str]]) -> None:
    """A hub that answers is without fault, and is asked once."""
    address, asked = server
    at(address)

    assert not any(hub.fault() for _ in range(3))
    assert ["/"] == asked


@pytest.mark.parametrize("get", [hf_hub_download, snapshot_download], ids=lambda get: get.__name__)
def test_neither_has_it(at: Callable[[str], None], server: tuple[str, list[str]], get: Callable[..., str]) -> None:
    """What a hub that answers does not give is missing, with what it was, why, and the remedy."""
    at(server[0])
    more = {"filename": "a.txt"} if get is hf_hub_download else {}
    with pytest.raises(Missing) as caught:
        hub.get(lambda **only: get("some/where", revision=COMMIT, endpoint=server[0], **more, **only), "a.txt", "look")

    assert str(caught.value).startswith("a.txt is not in the local cache and the hub did not give it (")
    assert str(caught.value).endswith("): look")


def test_weights_from_the_cache(at: Callable[[str], None], tmp_path: Path) -> None:
    """Without a hub, weights come from its cache; where that is empty, the message says what to give."""
    at("http://127.0.0.1:9")
    source = registry.load("backbones", "roberta").SOURCE
    with pytest.raises(Missing) as caught:
        source._find(None)
    held = tmp_path / "cache" / "models--FacebookAI--roberta-base" / "snapshots" / source.revision
    held.mkdir(parents=True)

    assert (
        "FacebookAI/roberta-base is not in the local cache and the hub cannot be reached (ConnectError): "
        "give --peft-backbones DIR with its files in DIR/roberta-base"
    ) == str(caught.value)
    assert held == source._find(None)
