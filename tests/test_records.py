"""Records on disk: whole or not there, and never of another run."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peft_dp import Record, Spec
from peft_dp.files import write
from peft_dp.records import Records, Unwritable, key
from peft_dp.spec import Privacy
from peft_dp.training.trail import Epoch

Make = Callable[..., Spec]

SOURCES = {"data": "d", "weights": "w", "code": "c"}
VERSIONS: dict[str, str | None] = {"torch": "2.10", "datasets": None}
REMEDY = "make room or allow it, or choose another folder with --peft-records DIR"


@pytest.fixture
def record(spec: Make) -> Record:
    """A record of a private run, with every kind of value in it."""
    run = spec(privacy=Privacy(epsilon=8.0, delta=1e-3), config={"rank": 4}, seed=2)
    return Record(
        key=key(run, SOURCES, VERSIONS, "cpu"),
        spec=run,
        values={"score": 200 / 3, "trainable": 100},
        ledger={"epsilon": 7.99, "noise_multiplier": 1.0, "clipped": [0.5, None], "matches_accountant": True},
        trail=[Epoch(loss=0.1, clipped=0.25, examples=24, tokens=300, steps=3, seconds=1e-3)],
        cost={"epoch_seconds": 0.5},
        sources=SOURCES,
        environment={"gpu": None, "versions": VERSIONS},
    )


def test_round_trip(tmp_path: Path, record: Record) -> None:
    """A record comes back equal, down to the last bit of every number."""
    folder = Records(tmp_path / "new" / "records")
    folder.save(record)

    assert record == folder.load(record.spec, record.key)


def test_file_name(tmp_path: Path, record: Record) -> None:
    """The file's name says method, privacy, task and seed, and holds the start of the key."""
    path = Records(tmp_path).save(record)

    assert path == tmp_path / f"bitfit-dp-sentiment-seed2-{record.key[:16]}.json"


def test_absent(tmp_path: Path, record: Record) -> None:
    """A key without a file is no record, whatever else the folder holds."""
    folder = Records(tmp_path)
    folder.save(record)

    assert folder.load(record.spec, "0" * 64) is None


def test_result_leaves_out_what_varies(record: Record) -> None:
    """Time, cost and machine are no part of what must repeat; values, ledger and losses are."""
    (epoch,) = record.trail
    slower = replace(record, trail=[replace(epoch, seconds=9.0)], cost={"epoch_seconds": 9.0}, environment={})

    assert record.result() == slower.result()
    assert record.result() != replace(record, trail=[replace(epoch, loss=0.2)]).result()
    assert record.result() != replace(record, values={"score": 1.0}).result()


def _spoil(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), "Invalid JSON: EOF"),
        (lambda path: path.write_bytes(b""), "Invalid JSON: EOF"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "Invalid JSON"),
        (lambda path: _spoil(path, lambda data: data.pop("values")), "field 'values': field required"),
        (lambda path: _spoil(path, lambda data: data.update(note="x")), "field 'note': unexpected keyword argument"),
        (lambda path: _spoil(path, lambda data: data["values"].update(score="high")), "field 'values.score'"),
        (lambda path: _spoil(path, lambda data: data["spec"].update(epochs=0)), "epochs must be a whole number"),
        (lambda path: _spoil(path, lambda data: data["trail"][0].pop("loss")), "field 'trail.0.loss'"),
        (
            lambda path: _spoil(path, lambda data: data["ledger"].pop("epsilon")),
            "ledger must state epsilon as a number",
        ),
        (
            lambda path: _spoil(path, lambda data: data["ledger"].update(noise_multiplier="1")),
            "ledger must state noise_multiplier as a number",
        ),
        (lambda path: _spoil(path, lambda data: data["trail"][0].update(steps=-1)), "field 'trail.0.steps'"),
        (lambda path: _spoil(path, lambda data: data["ledger"].update(delta=math.inf)), "not JSON compliant"),
    ],
    ids=[
        "truncated",
        "empty",
        "bytes",
        "missing",
        "unknown",
        "type",
        "spec",
        "trail",
        "epsilon",
        "noise",
        "steps",
        "infinity",
    ],
)
def test_damaged(
    tmp_path: Path, record: Record, spoil: Callable[[Path], object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A damaged file is no record; it is set aside as it is, and one line says which, why and what happens."""
    folder = Records(tmp_path)
    path = folder.save(record)
    spoil(path)
    damaged = path.read_bytes()

    assert folder.load(record.spec, record.key) is None
    with folder.held([(record.spec, record.key)]):
        assert not path.exists()
    (message,) = caplog.messages
    assert message.startswith(f"{path} is not a record: ")
    assert message.endswith(f": set aside as {path.name}.damaged, and trained again")
    assert "\n" not in message
    assert len(message.removeprefix(f"{path}")) < 400
    assert words in message
    assert {f"{path.name}.damaged": damaged} == {left.name: left.read_bytes() for left in tmp_path.iterdir()}


def test_damaged_again(tmp_path: Path, record: Record) -> None:
    """What was set aside before stays too."""
    folder = Records(tmp_path)
    for text in (b"1", b"2", b"3"):
        folder.path(record.spec, record.key).write_bytes(text)
        with folder.held([(record.spec, record.key)]):
            pass

    assert {b"1", b"2", b"3"} == {left.read_bytes() for left in tmp_path.glob("*.damaged*")}


def test_foreign_key(tmp_path: Path, record: Record, caplog: pytest.LogCaptureFixture) -> None:
    """A file that holds another run's record is none of this key, though its name is right."""
    folder = Records(tmp_path)
    path = folder.save(record)
    other = record.key[:16] + "0" * 48
    _spoil(path, lambda data: data.update(key=other))

    assert folder.load(record.spec, record.key) is None
    with folder.held([(record.spec, record.key)]):
        pass
    assert (
        f"{path} holds the record of another run ({other[:16]}): set aside as {path.name}.damaged, and trained again"
        in caplog.messages
    )


@pytest.mark.parametrize("part", ["data", "weights", "code", "torch"])
def test_record_of_other_sources(tmp_path: Path, record: Record, part: str) -> None:
    """A record made from other data, weights or code, or with another pin, is not this run's, and stays where it is."""
    folder = Records(tmp_path)
    path = folder.save(record)
    sources = SOURCES | ({part: "other"} if part in SOURCES else {})
    versions = VERSIONS | ({part: "other"} if part in VERSIONS else {})
    other = key(record.spec, sources, versions, "cpu")

    assert folder.load(record.spec, other) is None
    with folder.held([(record.spec, other)]):
        assert folder.load(record.spec, record.key) == record
    assert [path] == list(tmp_path.iterdir())


def test_whole_record_stays(tmp_path: Path, record: Record) -> None:
    """A whole record is not set aside, and no lock is left beside it."""
    folder = Records(tmp_path)
    path = folder.save(record)
    with folder.held([(record.spec, record.key)] * 2):
        assert [path.name, f"{path.name}.lock"] == sorted(file.name for file in tmp_path.iterdir())

    assert [path] == list(tmp_path.iterdir())
    assert folder.load(record.spec, record.key) == record


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk(
    tmp_path: Path,
    record: Record,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    """A write that fails leaves the old file as it was and no temporary one, and says the record whole."""
    folder = Records(tmp_path)
    path = folder.save(record)
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(Unwritable) as caught:
        folder.save(replace(record, values={"score": 1.0}))

    start = f"record {path} cannot be written to (No space left on device)"
    assert str(caught.value) == f"{start}: {REMEDY}"
    assert '"score": 1.0' in caplog.text
    assert record.key in caplog.text

    assert [path] == list(tmp_path.iterdir())
    assert before == path.read_bytes()


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_folder_is_tried_as_a_record_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A folder that refuses any step of saving is refused before anything trains."""

    def fail(*arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(Unwritable, match="records folder"):
        Records(tmp_path)


def test_not_a_number(tmp_path: Path, record: Record) -> None:
    """A value that JSON has no word for is refused when a record is made, or else written; nothing is left behind."""
    folder = Records(tmp_path)
    with pytest.raises(ValueError, match="finite number"):
        replace(record, values={"score": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        folder.save(replace(record, environment={"load": float("nan")}))

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("inside", ["", "deeper/still"])
def test_folder_that_is_a_file(tmp_path: Path, inside: str) -> None:
    """A folder that cannot be made is refused at once, with the remedy."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / inside
    with pytest.raises(ValueError) as caught:
        Records(folder)
    message = str(caught.value)

    assert message.startswith(f"records folder {folder} cannot be written to (")
    assert message.endswith(REMEDY)


def test_folder_without_permission(tmp_path: Path) -> None:
    """A folder that exists but takes no file is refused at once."""
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        tmp_path.chmod(0o700)
        pytest.skip("this user may write anywhere")
    try:
        with pytest.raises(ValueError, match=r"cannot be written to \(Permission denied\)"):
            Records(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_writing_replaces(tmp_path: Path) -> None:
    """`write` replaces a file as a whole and keeps the text as it is."""
    path = tmp_path / "file.json"
    path.write_text("a much longer text than the next")
    write(path, "né\n")

    assert path.read_bytes() == "né\n".encode()


def test_key_repeats(spec: Make) -> None:
    """The key is the same for the same run, in whatever order its parts come."""
    turned = dict(reversed(SOURCES.items()))

    assert key(spec(), SOURCES, VERSIONS, "cpu") == key(spec(), turned, dict(reversed(VERSIONS.items())), "cpu")


@pytest.mark.parametrize("part", ["data", "weights", "code", "torch", "datasets", "device", "seed", "privacy"])
def test_key_changes(spec: Make, part: str) -> None:
    """Anything that may change the result changes the key."""
    run = {"seed": spec(seed=1), "privacy": spec(privacy=Privacy(epsilon=8.0, delta=1e-3))}.get(part, spec())
    sources = SOURCES | ({part: "other"} if part in SOURCES else {})
    versions = VERSIONS | ({part: "other"} if part in VERSIONS else {})
    changed = key(run, sources, versions, "cuda" if part == "device" else "cpu")

    assert changed != key(spec(), SOURCES, VERSIONS, "cpu")


def test_half_written_goes(tmp_path: Path, record: Record) -> None:
    """What a killed writer left of a record goes once its run is held again; that of another run stays."""
    folder = Records(tmp_path)
    path = folder.path(record.spec, record.key)
    mine, other = (tmp_path / f".{name}.abc" for name in (path.name, "other.json"))
    for left in (mine, other):
        left.write_text("{")
    with folder.held([(record.spec, record.key)]):
        assert (False, True) == (mine.exists(), other.exists())
