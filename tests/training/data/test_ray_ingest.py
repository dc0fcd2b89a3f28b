# SPDX-License-Identifier: Apache-2.0
"""Ray Data gives the same examples as one process. All tests share one Ray session."""

import json
import logging
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redrafter_training.__main__ import main
from redrafter_training.config.job import Job
from redrafter_training.config.recipe import Budget, DistillConfig
from redrafter_training.data.conversations import load_conversations
from redrafter_training.data.prepare import examples_file, load_examples, prepare_examples, wants_ray
from redrafter_training.data.record_shards import Piece, cut
from redrafter_training.data.records import read_records
from redrafter_training.data.report import DataError, DataReport
from redrafter_training.data.tokenize import Example, ExampleEncoder, encode_all
from redrafter_training.run.inputs import input_fingerprints
from redrafter_training.tiny_target.tokenizer import train_tokenizer
from tests.paths import ASSET

ray = pytest.importorskip("ray", reason="Ray is not installed (the `train` extra)")
pytest.importorskip("pyarrow", reason="pyarrow is not installed (the `train` extra)")

from redrafter_training.data.example_store import read_store, write_store  # noqa: E402
from redrafter_training.data.ray_ingest import EncodePieces, ingest  # noqa: E402

Examples = tuple[list[Example], DataReport]


def turns(number: int) -> dict[str, Any]:
    said = [
        {"role": "user", "content": f"Tell me about {number}."},
        {"role": "assistant", "content": f"{number} follows {number - 1}. " * (1 + number % 7)},
    ]
    return {"messages": said * (1 + number % 3)}


def broken_lines() -> list[str]:
    """Good records, and one of each kind that cannot be used; a blank line; a first line with a byte order mark."""
    lines = [json.dumps(turns(n)) for n in range(40)]
    lines[5:5] = ['{"messages": [', '{"messages": []}', "", "[1]", '{"messages": [{"role": "user", "content": "x"}]}']
    lines[20:20] = ['{"other": 1}', '{"messages": [{"role": "user", "content": 3}]}', '"\\ud800"']
    lines[30:30] = [json.dumps({"messages": [{"role": "user", "content": "long " * 300}, turns(1)["messages"][1]]})]
    accents = [{"role": "user", "content": "caf\u00e9\u2028"}, {"role": "assistant", "content": "oui"}]
    lines.append(json.dumps({"messages": accents}, ensure_ascii=False))
    return lines


@pytest.fixture(scope="module")
def encoder() -> ExampleEncoder:
    tokenizer = train_tokenizer([json.dumps(turns(n)) for n in range(40)], 300)
    return ExampleEncoder(tokenizer, 300, "vicuna")


@pytest.fixture
def quiet_ray(ray_session: Callable[[], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "ray.data")


def direct(source: str, encoder: ExampleEncoder) -> Examples:
    conversations, report = load_conversations([source])
    return encode_all(conversations, encoder, report, quiet=True), report


def assert_same(made: Examples, expected: Examples) -> None:
    assert made[1] == expected[1]
    assert str(made[1]) == str(expected[1])
    assert len(made[0]) == len(expected[0])
    for one, other in zip(made[0], expected[0], strict=True):
        assert (one.where, one.cut, one.content, one.ends) == (other.where, other.cut, other.content, other.ends)
        assert one.content is not None and one.ends[-1] == len(one)
        assert one.tokens.dtype == other.tokens.dtype
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.loss_mask, other.loss_mask)


def write_sources(folder: Path) -> list[Path]:
    """The same records as lines, as an array, as Parquet in several row groups and as text."""
    import pyarrow as pa
    import pyarrow.parquet

    lines = broken_lines()
    (folder / "lines.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode() + b'\n{"messages": "\xff"}')
    (folder / "misnamed.json").write_text("\n".join(lines))
    (folder / "array.json").write_text(json.dumps([turns(n) for n in range(30)] + [7, {"messages": None}]))
    rows = pa.Table.from_pylist([turns(n) for n in range(30)] + [{"messages": None}])
    pyarrow.parquet.write_table(rows, folder / "rows.parquet", row_group_size=8)
    (folder / "text.txt").write_text("It was a dark night. " * 60)
    return sorted(folder.iterdir())


def test_pieces_contain_all_records_in_order(tmp_path: Path) -> None:
    for path in write_sources(tmp_path):
        expected = [(r.where, r.value, str(r.problem)) for r in read_records(str(path))]
        for sizes in ({"piece_bytes": 1, "piece_records": 1}, {"piece_bytes": 700, "piece_records": 7}, {}):
            pieces = list(cut(str(path), **sizes))
            assert [(r.where, r.value, str(r.problem)) for piece in pieces for r in piece()] == expected
    assert len(list(cut(str(tmp_path / "rows.parquet")))) == 4
    with pytest.raises(DataError, match="no such file"):
        list(cut(str(tmp_path / "nowhere.jsonl")))
    (tmp_path / "empty.jsonl").touch()
    assert list(cut(str(tmp_path / "empty.jsonl"))) == []


class InTurn:
    """The calls of `ingest` to Ray Data, executed in this process."""

    def __init__(self, pieces: list[Piece], encoder: ExampleEncoder, form: str, keep_evaluation: bool) -> None:
        self.pieces, self.encode = pieces, EncodePieces(encoder, form, keep_evaluation)

    def iter_batches(self, **options: object) -> Iterator[Any]:
        for number, piece in enumerate(self.pieces):
            yield from self.encode({"number": [number], "piece": [pickle.dumps(piece)]})


def test_examples_and_report_of_every_kind_of_file(
    encoder: ExampleEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redrafter_training.data.ray_ingest._encoded", InTurn)
    sources = tmp_path / "sources"
    sources.mkdir()
    for path in write_sources(sources):
        store = tmp_path / f"{path.name}.parquet"
        ingest(str(path), encoder, store, piece_bytes=900, piece_records=4)
        expected = direct(str(path), encoder)
        assert_same(read_store(store), expected)
        if path.suffix != ".txt":
            assert expected[1].skipped
            assert expected[1].truncated
    assert expected[1].used == 1 < len(expected[0])  # the text, in several examples
    assert not list(tmp_path.glob("*.writing"))


def test_ray_gives_the_same_examples_as_one_process(quiet_ray: None, encoder: ExampleEncoder, tmp_path: Path) -> None:
    source, store = tmp_path / "lines.jsonl", tmp_path / "store.parquet"
    source.write_text("\n".join(broken_lines() * 5))
    ingest(str(source), encoder, store, piece_bytes=2000)
    expected = direct(str(source), encoder)
    assert expected[1].used > 5 * 40
    assert_same(read_store(store), expected)


def test_hub_data_sets(
    quiet_ray: None, encoder: ExampleEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed (the `train` extra)")
    rows = datasets.Dataset.from_list([turns(n) for n in range(30)] + [{"messages": []}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: rows)
    ingest("some/name", encoder, tmp_path / "store.parquet", piece_records=7)
    expected = direct("some/name", encoder)
    assert expected[0][3].where == "some/name[3]"
    assert_same(read_store(tmp_path / "store.parquet"), expected)


def test_unusable_data_raises_and_leaves_no_file(
    encoder: ExampleEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redrafter_training.data.ray_ingest._encoded", InTurn)
    source, store = tmp_path / "data.jsonl", tmp_path / "store.parquet"
    source.write_text('{"messages": [{"role": "user", "content": "x"}]}\n' * 3)
    with pytest.raises(DataError, match="none of the 3 records"):
        ingest(str(source), encoder, store)
    source.write_text("")
    with pytest.raises(DataError, match="no records"):
        ingest(str(source), encoder, store)
    source.write_text(json.dumps(turns(1)))
    with pytest.raises(DataError, match="chat template"):
        ingest(str(source), ExampleEncoder(encoder.tokenizer, 300), store)
    assert not store.exists()


def test_command_trains_the_same_drafter_with_both_ingests(
    quiet_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, data = tmp_path / "target", tmp_path / "data.jsonl"
    shutil.copytree(ASSET, target, ignore=shutil.ignore_patterns("redrafter*"))
    data.write_text("\n".join(broken_lines()))
    arguments = (
        f"--target {target} --data {data} --chat-template vicuna --max-steps 3 --window 320 --batch-size 2 "
        "--beam-length 2 --response-fraction 0 --evaluate-windows 2 --evaluate false --device cpu"
    ).split()
    shown, weights = [], []
    for way in ("ray", "direct"):
        assert main([*arguments, "--ingest", way, "--out", str(tmp_path / way)]) == 0
        shown.append([line for line in capsys.readouterr().out.splitlines() if "lines.jsonl" in line or "used" in line])
        weights.append((tmp_path / way / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert shown[0] == shown[1] != []
    reports = [json.loads((tmp_path / way / "training.json").read_text())["data"] for way in ("ray", "direct")]
    assert reports[0] == reports[1]
    assert reports[0]["packed"]
    # Seven are broken, and one has a prompt that leaves no room for the answer.
    assert reports[0]["skipped"] == 8
    (stored,) = (tmp_path / "ray.run").glob("examples-*.parquet")
    assert not list((tmp_path / "direct.run").glob("examples-*"))

    # What is stored is what counts from then on, whatever has become of the source.
    job = Job(str(target), str(data), chat_template="vicuna", ingest="ray", out=tmp_path / "ray")
    inputs = input_fingerprints(job, DistillConfig(Budget(1)))
    assert examples_file(job, 320, inputs) == stored
    data.unlink()
    prepare_examples(job, 320, inputs)
    examples, _ = load_examples(stored, str(data), ExampleEncoder(train_tokenizer(["x"], 300), 320), quiet=True)
    assert len(examples) == reports[0]["training"] + reports[0]["held_out"]
    with pytest.raises(DataError, match="no such file"):
        prepare_examples(replace(job, resume=False), 320, inputs)
    assert not stored.exists()


def test_which_jobs_ingest_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"x" * 100)
    assert not wants_ray(Job("target", str(data)))
    assert wants_ray(Job("target", str(data), num_workers=2))
    assert wants_ray(Job("target", str(data), ingest="ray"))
    assert not wants_ray(Job("target", str(data), ingest="direct", num_workers=2))
    monkeypatch.setattr("redrafter_training.data.prepare.LARGE", 100)
    assert wants_ray(Job("target", str(data)))


def test_examples_are_stored_atomically(tmp_path: Path) -> None:
    def fill(write: Any) -> DataReport:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "run" / "store.parquet", fill)
    assert not (tmp_path / "run" / "store.parquet").exists()
    report = DataReport(used=0, truncated=2, cut_tokens=5)
    write_store(tmp_path / "run" / "store.parquet", lambda write: report)
    assert asdict(read_store(tmp_path / "run" / "store.parquet")[1]) == asdict(report)
