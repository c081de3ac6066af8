"""The hub: asked once and never for long; what it or the local cache holds is given, and what is in neither is said."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from time import monotonic

import pytest
from huggingface_hub import constants, hf_hub_download, snapshot_download

from peft_dp import hub, registry
from peft_dp.models.source import Source
from peft_dp.validate import Missing

COMMIT = "0" * 40


TEMPLATE = constants.HUGGINGFACE_CO_URL_TEMPLATE.removeprefix(constants.ENDPOINT)
"""Where a file lies at the hub's address."""


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts the hub at an address; its cache is empty."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "SECONDS", 1.0)

    def put(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + TEMPLATE)

    return put


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


SOURCE = Source(repository="some/model", revision=COMMIT)


@pytest.fixture
def repository(at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Starts a hub that has files of `SOURCE` at its commit; gives what it is asked."""
    started = []

    def start(*names: str) -> list[str]:
        asked: list[str] = []

        def answer(request: BaseHTTPRequestHandler) -> None:
            asked.append(request.path)
            path = request.path.partition("?")[0]
            content: object = {}
            if path.startswith("/api/models/some/model/tree"):
                content = [{"type": "file", "path": name, "size": 2, "oid": "1" * 40} for name in names]
            elif path.startswith("/api/"):
                content = {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            body = json.dumps(content).encode()
            known = path == "/" or path.startswith("/api/") or path.rpartition("/")[2] in names
            request.send_response(200 if known else 404)
            for name, value in {"ETag": '"1"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}.items():
                request.send_header(name, value)
            request.end_headers()
            if request.command == "GET":
                request.wfile.write(body)

        answers = {"do_HEAD": answer, "do_GET": answer, "log_message": lambda *_: None}
        made = HTTPServer(("127.0.0.1", 0), type("Hub", (BaseHTTPRequestHandler,), answers))
        address = f"http://127.0.0.1:{made.server_port}"
        threading.Thread(target=made.serve_forever).start()
        started.append(made)
        at(address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        return asked

    yield start
    for made in started:
        made.shutdown()
        made.server_close()


FILES = ("model.safetensors", "config.json", "tokenizer.json")


def test_fetched_once(repository: Callable[..., list[str]]) -> None:
    """What the cache holds at the pinned commit is taken from there, and the hub is not asked again."""
    asked = repository(*FILES, "pytorch_model.bin")
    found = SOURCE._find(None)
    first = len(asked)

    assert sorted(FILES) == sorted(path.name for path in found.iterdir())
    assert found == SOURCE._find(None)
    assert first == len(asked)


def test_commit_without_safetensors(repository: Callable[..., list[str]]) -> None:
    """A pinned commit that holds no safetensors is said to, with a way out."""
    repository("config.json", "tokenizer.json", "pytorch_model.bin")
    with pytest.raises(Missing) as caught:
        SOURCE.locate(None)

    assert (
        "some/model has no model.safetensors at the pinned commit 000000000000: give --peft-backbones DIR with the "
        "files of another commit in DIR/model; the record keeps their hash"
    ) == str(caught.value)


def snapshot(cache: Path, repository: str, commit: str, *names: str) -> Path:
    """Put files, which are empty, into the hub's cache."""
    held = cache / f"models--{repository.replace('/', '--')}" / "snapshots" / commit
    held.mkdir(parents=True)
    for name in names:
        (held / name).touch()
    return held


def test_weights_from_the_cache(at: Callable[[str], None], tmp_path: Path) -> None:
    """Without a hub, weights come from its cache; where that is empty, the message says what to give."""
    at("http://127.0.0.1:9")
    source = registry.load("backbones", "roberta").SOURCE
    with pytest.raises(Missing) as caught:
        source._find(None)
    held = snapshot(tmp_path / "cache", source.repository, source.revision, *FILES)

    assert (
        "FacebookAI/roberta-base is not in the local cache and the hub cannot be reached (ConnectError): "
        "give --peft-backbones DIR with its files in DIR/roberta-base"
    ) == str(caught.value)
    assert held == source._find(None)


@pytest.mark.parametrize(
    ("names", "lacks"), [(FILES[1:], "model.safetensors"), (FILES[:2], "tokenizer"), ((), "model.safetensors")]
)
def test_part_of_it_in_the_cache(at: Callable[[str], None], tmp_path: Path, names: Sequence[str], lacks: str) -> None:
    """Without a hub, a cache that holds the commit in part is said to, with what it lacks."""
    at("http://127.0.0.1:9")
    held = snapshot(tmp_path / "cache", "some/model", COMMIT, *names)
    with pytest.raises(Missing) as caught:
        SOURCE.locate(None)

    says = f"some/model is in the local cache without {lacks} ({held}) and the hub cannot be reached (ConnectError): "
    assert str(caught.value).startswith(says)


def test_part_of_it_is_completed(repository: Callable[..., list[str]], tmp_path: Path) -> None:
    """With a hub, what the cache lacks is fetched."""
    repository(*FILES)
    held = snapshot(tmp_path / "cache", "some/model", COMMIT, "config.json")

    assert held == SOURCE._find(None)
    assert set(FILES) == {path.name for path in held.iterdir()}


def test_offline_by_choice(repository: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """With HF_HUB_OFFLINE set the hub is not asked."""
    asked = repository(*FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(Missing, match=r"not in the local cache and the hub is not asked \(HF_HUB_OFFLINE\)"):
        SOURCE.locate(None)

    assert not asked
