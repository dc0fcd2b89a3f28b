# SPDX-License-Identifier: Apache-2.0
"""Figures from a server's counters, worked by hand, and the client's command line."""

import json
from pathlib import Path
from typing import Any

import pytest

from redrafter_vllm.bench.child import ChildError
from redrafter_vllm.bench.closed_loop import Turn
from redrafter_vllm.bench.phases import REST
from redrafter_vllm.bench.servers import ServedEngine, decoding, drafts, read_counts, step_time

METRICS = """
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{engine="0",model_name="target"} 60.0
vllm:generation_tokens_total{engine="1",model_name="target"} 40.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{engine="0",finished_reason="stop",model_name="target"} 3.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="target"} 1.0
# TYPE vllm:spec_decode_num_accepted_tokens_per_pos_total counter
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="target",position="0"} 30.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="target",position="1"} 18.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="target",position="2"} 0.0
# TYPE vllm:spec_decode_num_accepted_tokens_total counter
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="target"} 48.0
"""


def test_counters_are_summed_and_split_by_depth() -> None:
    counts = read_counts(METRICS)
    assert counts["vllm:generation_tokens_total"] == 100
    assert counts["vllm:request_success_total"] == 4
    assert counts["vllm:spec_decode_num_accepted_tokens_per_pos_total:1"] == 18


def test_accepted_tokens_are_what_steps_emit_beside_their_own() -> None:
    # 96 tokens behind the first ones, 48 of them accepted drafts: 48 steps.
    assert decoding({}, read_counts(METRICS)) == (2.0, [30 / 48, 18 / 48])


def test_only_what_came_since_counts() -> None:
    before = read_counts(METRICS)
    now = {**before, "vllm:generation_tokens_total": 111.0, "vllm:request_success_total": 5.0}
    assert decoding(before, now) == (1.0, [])
    assert decoding(before, before) == (None, [])


def test_the_plugins_counters_know_the_end_of_requests() -> None:
    counts = {
        "vllm:generation_tokens_total": 104.0,
        "vllm:request_success_total": 4.0,
        "vllm:redrafter_verifications_total": 30.0,
        "vllm:redrafter_tokens_total": 80.0,
        "vllm:redrafter_accepted_total:0": 25.0,
        "vllm:redrafter_accepted_total:1": 10.0,
        # vLLM's own also count drafts behind the end.
        "vllm:spec_decode_num_accepted_tokens_total": 60.0,
    }
    # 30 verifications emit 80 tokens; the other 20 come from 20 steps without drafts.
    assert decoding({}, counts) == (2.0, [0.5, 0.2])


def test_plain_vllm_emits_one_token_a_step() -> None:
    counts = {"vllm:generation_tokens_total": 104.0, "vllm:request_success_total": 4.0}
    assert decoding({}, counts) == (1.0, [])


def test_what_was_drafted() -> None:
    counts = {
        "vllm:generation_tokens_total": 104.0,
        "vllm:request_success_total": 4.0,
        "vllm:iteration_tokens_total_count": 40.0,
        "vllm:spec_decode_num_draft_tokens_total": 150.0,
        "vllm:redrafter_skipped_rounds_total": 10.0,
    }
    # 100 tokens behind the first ones in 50 steps.
    assert drafts({}, counts, 2.0) == {"nodes_per_step": 3.0, "skipped": 0.25}
    plain = {name: value for name, value in counts.items() if "redrafter" not in name and "spec" not in name}
    assert drafts({}, plain, 1.0) == {"nodes_per_step": None, "skipped": None}
    assert drafts(counts, counts, None) == {"nodes_per_step": None, "skipped": None}


def test_the_time_of_a_step() -> None:
    counts = {
        "vllm:iteration_tokens_total_count": 50.0,
        "vllm:redrafter_draft_microseconds_total": 200_000.0,
        "vllm:redrafter_step_microseconds_total": 800_000.0,
    }
    assert step_time({}, counts, 1.0) == pytest.approx({"draft": 4.0, "verify": 12.0, REST: 4.0})
    assert step_time({}, {"vllm:iteration_tokens_total_count": 50.0}, 1.0) == {"whole step": 20.0}
    assert step_time({}, {}, 1.0) == {}


class Process:
    pid = 1

    def poll(self) -> None: ...


@pytest.fixture
def engine(tmp_path: Path) -> ServedEngine:
    return ServedEngine(
        "ours", "http://localhost:1", "target", Path("t"), Path("p.jsonl"), False, Process(), tmp_path / "ours.log"
    )


def test_the_client(engine: ServedEngine) -> None:
    line = engine.client(Turn(16, 4, 32, 0.7, ignore_eos=True), Path("folder/result.json"))

    def value(name: str) -> str:
        return line[line.index(name) + 1]

    assert line[1:3] == ["bench", "serve"]
    assert (value("--num-prompts"), value("--max-concurrency"), value("--custom-output-len")) == ("16", "4", "32")
    assert value("--result-dir") == "folder" and value("--result-filename") == "result.json"
    assert json.loads(value("--extra-body")) == {"add_special_tokens": False, "seed": 0}
    assert "--ignore-eos" in line and "--disable-shuffle" in line


def result(**others: Any) -> dict[str, Any]:
    return {
        "duration": 2.0,
        "completed": 2,
        "generated_texts": ["ab", "cd"],
        "output_lens": [3, 2],
        "ttfts": [0.5, 0.25],
        "itls": [[0.5, 0.25], [1.0]],
        "errors": ["", ""],
        **others,
    }


def test_figures_of_a_turn(engine: ServedEngine) -> None:
    counts = {"vllm:generation_tokens_total": 5.0, "vllm:request_success_total": 2.0}
    found = engine._figures(result(), Turn(2, 1, 3), {}, counts)
    assert found["latency"] == [1.25, 1.25] and found["ttft"] == [0.5, 0.25]
    assert found["tokens"] == [3, 2] and found["outputs"] == ["ab", "cd"] and found["seconds"] == 2.0
    assert found["tokens_per_step"] == 1.0


def test_a_failed_request_fails_the_turn(engine: ServedEngine) -> None:
    failed = result(completed=1, errors=["", "Traceback\n  File\nValueError: too long\n"])
    with pytest.raises(ChildError, match="1 requests of ours failed: ValueError: too long"):
        engine._figures(failed, Turn(2, 1, 3), {}, {})


def test_a_server_that_is_gone(engine: ServedEngine) -> None:
    with pytest.raises(ChildError, match="the server of ours gives no metrics"):
        engine.counts()
