# SPDX-License-Identifier: Apache-2.0
"""`redrafter bench` on the committed pair: engines and servers as users have them, in processes of their own."""

import json
from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.bench.configurations import PLAIN
from redrafter_vllm.cli import bench

PROMPTS = ["def read(self, size=-1):", "import os\n\nclass ", "for key, value in sorted(", "try:\n    from os import "]
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
NEW_TOKENS = 24


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, asset: Path) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    options = f"--concurrency 1 2 --requests {len(PROMPTS)} --max-tokens {NEW_TOKENS} --prompt-tokens 32 --rounds 2"
    own = ["--config", f"ngram={json.dumps(NGRAM)}", "--data", str(prompts), "--out", str(folder / "out")]
    engine = ["--", "--dtype", "float32", "--enforce-eager"]
    assert bench.main(["offline", str(asset), *options.split(), *own, *engine]) == 0
    return folder / "out"


def turns(out: Path) -> list[dict[str, Any]]:
    files = sorted((out / "rounds").iterdir())
    assert [file.name for file in files] == ["001.json", "002.json"]
    return [turn for file in files for turn in json.loads(file.read_text())]


@pytest.mark.engine
@pytest.mark.timeout(600, method="signal")
def test_the_written_files_agree(out: Path) -> None:
    results = json.loads((out / "results.json").read_text())
    names = list(results["settings"]["configurations"])
    assert names[0] == PLAIN and names[-1] == "ngram" and any(name.startswith("ReDrafter") for name in names)
    found = turns(out)
    assert len(found) == 2 * 2 * len(names)
    # Greedy in float32: every configuration emits plain vLLM's tokens, in every turn.
    expected = found[0]["outputs"]
    assert [len(tokens) for tokens in expected] == [NEW_TOKENS] * len(PROMPTS)
    assert all(turn["outputs"] == expected and turn["same_requests"] == len(PROMPTS) for turn in found)
    for turn in found:
        assert turn["tokens"] == [NEW_TOKENS] * len(PROMPTS)
        assert max(turn["ttft"]) > 0 and max(turn["latency"]) <= turn["seconds"]
        assert all(first < whole for first, whole in zip(turn["ttft"], turn["latency"], strict=True))
        assert turn["memory"] > 1 << 28
        if turn["configuration"] == PLAIN:
            assert turn["tokens_per_step"] == 1.0 and turn["acceptance"] == []
            assert turn["nodes_per_step"] is None and turn["skipped"] is None
        else:
            assert turn["nodes_per_step"] >= turn["tokens_per_step"] - 1
            assert turn["skipped"] is None if turn["configuration"] == "ngram" else 0 <= turn["skipped"] <= 1
            # What a step emits beside its own token are the drafts that it accepted. Adaptive steps without drafts are
            # no verifications, and where the machine is busy with other work all steps of a turn may be such.
            per_verification = pytest.approx(1 + sum(turn["acceptance"]))
            if turn["configuration"] == "ReDrafter adaptive":
                assert 1 <= turn["tokens_per_step"] <= per_verification.expected + 1e-9
            else:
                assert turn["tokens_per_step"] == per_verification
    rows = {(row["configuration"], row["concurrency"]): row for row in results["results"]}
    for name in names:
        for concurrency in (1, 2):
            row = rows[name, concurrency]
            own = [t for t in found if (t["configuration"], t["concurrency"]) == (name, concurrency)]
            # Trees that adapt follow the clock, so that rounds differ.
            measured = [turn["tokens_per_step"] for turn in own]
            assert min(measured) - 1e-9 <= row["tokens_per_step"] <= max(measured) + 1e-9
            assert row["speedup"]["low"] <= row["speedup"]["median"] <= row["speedup"]["high"]
            assert row["same_requests"] == row["requests"] == len(PROMPTS)
            assert sum(row["milliseconds"].values()) > 0
    ours = next(name for name in names if name.startswith("ReDrafter"))
    assert rows[ours, 1]["tokens_per_step"] > 1.2
    assert "draft" in rows[ours, 1]["milliseconds"] and set(rows[PLAIN, 1]["milliseconds"]) == {"whole step"}
    assert (out / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.engine
@pytest.mark.timeout(600, method="signal")
def test_servers_are_measured(tmp_path: Path, asset: Path) -> None:
    """`redrafter bench serve` whole: two servers, vLLM's client, the report, and the same command again."""
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    options = f"--concurrency 2 --requests {len(PROMPTS)} --max-tokens {NEW_TOKENS} --prompt-tokens 32 --rounds 1"
    fixed = 'ours={"method": "redrafter", "adaptive": false}'
    own = ["--without-redrafter", "--config", fixed, "--data", str(prompts), "--out", str(out)]
    command = ["serve", str(asset), *options.split(), *own, "--", "--dtype", "float32", "--enforce-eager"]
    assert bench.main(command) == 0
    (stored,) = (out / "rounds").iterdir()
    plain, ours = json.loads(stored.read_text())
    assert (plain["configuration"], ours["configuration"]) == (PLAIN, "ours")
    # Greedy in float32: the texts of plain vLLM.
    assert len(plain["outputs"]) == len(PROMPTS) and all(plain["outputs"])
    assert ours["outputs"] == plain["outputs"] and ours["same_requests"] == len(PROMPTS)
    for turn in (plain, ours):
        assert turn["tokens"] == [NEW_TOKENS] * len(PROMPTS)
        assert all(
            0 < first < whole <= turn["seconds"] for first, whole in zip(turn["ttft"], turn["latency"], strict=True)
        )
        assert turn["memory"] > 1 << 28
    assert plain["tokens_per_step"] == 1.0 and plain["nodes_per_step"] is None
    assert 1.2 < ours["tokens_per_step"] <= 1 + ours["nodes_per_step"] and ours["skipped"] == 0
    rows = {row["configuration"]: row for row in json.loads((out / "results.json").read_text())["results"]}
    assert rows["ours"]["speedup"]["median"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert set(rows["ours"]["milliseconds"]) == {"draft", "verify", "everything else"}
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    before = stored.stat().st_mtime_ns
    assert bench.main(command) == 0, "all rounds are there, so that nothing starts"
    assert stored.stat().st_mtime_ns == before
