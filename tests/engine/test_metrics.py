# SPDX-License-Identifier: Apache-2.0
"""vLLM's counters and ours, against the verifications recorded at the walk."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest

from redrafter_vllm.adaptive import rounds
from redrafter_vllm.adaptive.outlook import Outlook
from redrafter_vllm.integration.frontend.prometheus import ACCEPTED, COUNTERS
from redrafter_vllm.integration.worker.sampler import TreeSampler
from tests.engine.conftest import MakeEngine
from tests.engine.generation import TREE, cpu_only, generate, params, random_prompts, tokens
from tests.engine.scripted import run_both
from tests.models import VOCAB
from tests.paths import ROOT

REFERENCE = ROOT / "docs" / "reference"
METRIC = re.compile(r"vllm:[a-z_]+")
ENGINE = {**TREE, "beam_length": 5, "num_speculative_tokens": 12}
STATS = {
    "disable_log_stats": False,
    "per_request_spec_decode_metrics": "detailed",
    "async_scheduling": False,
}


class Step(NamedTuple):
    """One verification of a request that had a tree."""

    request: str
    known: int  # tokens before it, the prompt's included
    slots: int
    nodes: int
    emitted: int


@contextmanager
def watched() -> Iterator[list[Step]]:
    """Yields a list of all verifications, recorded at the walk."""
    seen: list[Step] = []
    verify = TreeSampler.__call__

    def record(self: TreeSampler, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        nodes = self.speculator.step.drafts.valid.sum(1).tolist()
        known = self.sampler.req_states.total_len.gpu[input_batch.idx_mapping].tolist()
        output = verify(self, logits, input_batch, *args, **kwargs)
        slots = input_batch.num_draft_tokens_per_req.tolist()
        emitted = self.speculator.step.walk.num_emitted.tolist()
        requests = [request.split("-")[0] for request in input_batch.req_ids]
        seen.extend(step for step in map(Step, requests, known, slots, nodes, emitted) if step.nodes > 0)
        return output

    with patch.object(TreeSampler, "__call__", record):
        yield seen


def received(seen: list[Step], outputs: list[Any]) -> list[Step]:
    """The verifications that gave a request tokens, with only the tokens that it got."""
    ends = {out.request_id: len(out.prompt_token_ids) + len(out.outputs[0].token_ids) for out in outputs}
    return [
        step._replace(emitted=min(step.emitted, ends[step.request] - step.known))
        for step in seen
        if step.known < ends[step.request]
    ]


def counters(llm: Any) -> Counter[Any]:
    """Values by name, or by name and depth or position."""
    values: Counter[Any] = Counter()
    for metric in llm.get_metrics():
        assert metric.labels.get("engine") == "0" or "redrafter" not in metric.name
        if hasattr(metric, "values"):
            values.update({(metric.name, depth): value for depth, value in enumerate(metric.values, 1)})
        elif hasattr(metric, "value"):
            name = metric.name
            values[(name, int(metric.labels["depth"])) if "depth" in metric.labels else name] = metric.value
    return values


def workload(count: int) -> list[Any]:
    """Trees, chains, an opted-out and a limited request."""
    kinds: list[dict[str, Any]] = [
        {},
        {"presence_penalty": 0.4},
        {"temperature": 0.9},
        {"extra_args": {"redrafter": {"enabled": False}}},
        {"extra_args": {"redrafter": {"num_speculative_tokens": 3}}},
    ]
    return [
        params(**{"temperature": 0.0, "seed": index, "ignore_eos": True, "max_tokens": 45, **kinds[index % len(kinds)]})
        for index in range(count)
    ]


def test_counters_equal_the_observed_steps(make_engine: MakeEngine, random_target: Path) -> None:
    plain, tree = make_engine(random_target), make_engine(random_target, ENGINE, **STATS)
    prompts = random_prompts(10, VOCAB, seed=8)
    before = counters(tree)
    with watched() as seen:
        _, outputs = run_both(plain, tree, prompts, workload(10))
    counted = counters(tree)
    counted.subtract(before)
    seen = received(seen, outputs)

    def at_least(depth: int) -> int:
        return sum(step.emitted > depth for step in seen)

    accepted = sum(step.emitted - 1 for step in seen)
    assert accepted > 100 and at_least(4) > 0
    # vLLM's own: nodes, not slots, are its draft tokens, and its positions are depths.
    assert counted["vllm:spec_decode_num_drafts"] == len(seen)
    assert counted["vllm:spec_decode_num_draft_tokens"] == sum(step.nodes for step in seen)
    assert counted["vllm:spec_decode_num_accepted_tokens"] == accepted
    positions = [counted["vllm:spec_decode_num_accepted_tokens_per_pos", depth] for depth in range(1, 13)]
    assert positions == [at_least(depth) for depth in range(1, 13)]
    # Ours.
    assert counted["vllm:redrafter_verifications"] == len(seen)
    assert counted["vllm:redrafter_tokens"] == accepted + len(seen)
    assert counted["vllm:redrafter_nodes"] == sum(step.nodes for step in seen)
    assert counted["vllm:redrafter_node_slots"] == sum(step.slots for step in seen)
    assert counted["vllm:redrafter_nodes"] < counted["vllm:redrafter_node_slots"]
    assert [counted[ACCEPTED, depth] for depth in range(1, 6)] == [at_least(depth) for depth in range(1, 6)]
    assert (ACCEPTED, 6) not in counted
    assert 0 < counted["vllm:redrafter_draft_microseconds"] < counted["vllm:redrafter_step_microseconds"]
    assert_per_request(seen, outputs)
    assert outputs[0].outputs[0].spec_decode_metrics.num_draft_tokens > 0
    assert outputs[3].outputs[0].spec_decode_metrics.num_draft_tokens == 0


def assert_per_request(seen: list[Step], outputs: list[Any]) -> None:
    for output in outputs:
        own = [(step.nodes, step.emitted - 1) for step in seen if step.request == output.request_id]
        figures = output.outputs[0].spec_decode_metrics.to_dict()
        assert list(zip(figures.get("per_step_drafted", []), figures.get("per_step_accepted", []), strict=True)) == own
        assert figures["num_spec_steps"] == len(own)
        assert figures["num_draft_tokens"] == sum(nodes for nodes, _ in own)
        assert figures["num_accepted_draft_tokens"] == sum(accepted for _, accepted in own)


def test_every_metric_is_exported_before_anything_ran(make_engine: MakeEngine, random_target: Path) -> None:
    tree = make_engine(random_target, ENGINE, **STATS)
    assert {metric.name for metric in tree.get_metrics() if "redrafter" in metric.name} == {*COUNTERS, ACCEPTED}


def test_the_log_line_has_the_same_numbers(
    make_engine: MakeEngine, random_target: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = make_engine(random_target, ENGINE, **STATS)
    lines: list[str] = []
    (logging,) = [
        logger.per_engine_stat_loggers[0].spec_decoding_logging
        for logger in tree.llm_engine.logger_manager.stat_loggers
        if hasattr(logger, "per_engine_stat_loggers")
    ] or [None]
    assert logging is not None
    logging.reset()
    with watched() as seen:
        sampling = params(temperature=0.0, ignore_eos=True, max_tokens=20)
        seen = received(seen, generate(tree, random_prompts(4, VOCAB, seed=9), sampling))
    logging.log(log_fn=lambda text, *values: lines.append(text % values))
    nodes, accepted = sum(step.nodes for step in seen), sum(step.emitted - 1 for step in seen)
    assert f"Accepted: {accepted} tokens, Drafted: {nodes} tokens" in lines[0]
    assert f"Mean acceptance length: {1 + accepted / len(seen):.2f}" in lines[0]


def test_dashboard_and_document_name_exported_metrics(make_engine: MakeEngine, random_target: Path) -> None:
    metrics = make_engine(random_target, ENGINE, **STATS).get_metrics()
    labels = {metric.name: {*metric.labels} for metric in metrics}
    ours = {*COUNTERS, ACCEPTED}
    dashboard = json.loads((REFERENCE / "grafana" / "redrafter.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries += [variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable]
    shown: set[str] = set()
    for query in queries:
        names = {name.removesuffix("_total") for name in METRIC.findall(query)}
        assert names <= labels.keys(), query
        shown |= names
        for label in re.findall(r"by \((\w+)\)", query) + re.findall(r"(\w+)=~", query):
            assert any(label in labels[name] for name in names), query
    assert ours <= shown
    document = (REFERENCE / "metrics.md").read_text()
    assert {
        name.removesuffix("_total") for name in METRIC.findall(document) if name != "vllm:redrafter_"
    } <= labels.keys()
    assert all(f"| `{name}` |" in document for name in ours)


def test_dashboard_can_be_imported() -> None:
    """Grafana can import it: a schema version, a data source to choose, panels that do not overlap."""
    dashboard = json.loads((REFERENCE / "grafana" / "redrafter.json").read_text())
    assert dashboard["schemaVersion"] >= 36 and dashboard["title"] and dashboard["uid"]
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert {"datasource", "model_name", "engine"} == variables
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"] and panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        for variable in re.findall(r"\$(\w+)", " ".join(target["expr"] for target in panel["targets"])):
            assert variable in variables or variable == "__rate_interval"
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


@cpu_only
def test_a_pause_is_counted_while_it_lasts(make_engine: MakeEngine, random_target: Path) -> None:
    """Every step brings its own counts, though none verifies drafts, and vLLM has nothing to log of them."""
    llm = make_engine(random_target, {**ENGINE, "adaptive": True}, **STATS)
    (logging,) = [
        logger.per_engine_stat_loggers[0].spec_decoding_logging
        for logger in llm.llm_engine.logger_manager.stat_loggers
        if hasattr(logger, "per_engine_stat_loggers")
    ]
    (prompt,) = random_prompts(1, VOCAB, seed=3)
    seen: list[Counter[Any]] = []
    with patch.object(Outlook, "skips", lambda *_: True), patch.object(rounds, "PLAIN_RUN", 0):
        sampling = params(temperature=0.0, ignore_eos=True, max_tokens=12)
        llm.llm_engine.add_request("paused", {"prompt_token_ids": prompt}, sampling)
        logging.reset()
        began = time.perf_counter()
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
            seen.append(counters(llm))
        ended = time.perf_counter()
    # The step of the prompt skips the first round, which the next step has not.
    skipped = [values["vllm:redrafter_skipped_rounds"] - seen[0]["vllm:redrafter_skipped_rounds"] for values in seen]
    assert skipped == [*range(12)]
    times = [values["vllm:redrafter_step_microseconds"] for values in seen]
    assert all(before < after for before, after in pairwise(times))
    assert seen[-1]["vllm:spec_decode_num_drafts"] == seen[0]["vllm:spec_decode_num_drafts"]
    # Without drafts the steps take as long as without drafts.
    without, adaptive = (
        seen[-1][f"vllm:redrafter_{name}_microseconds"] - seen[0][f"vllm:redrafter_{name}_microseconds"]
        for name in ("plain", "adaptive")
    )
    assert without == pytest.approx(adaptive, abs=12) and adaptive > 0
    # All that these steps took is counted, with what the engine does between them, and nothing beside.
    by_the_clock = seen[-1]["vllm:redrafter_passed_microseconds"] - seen[0]["vllm:redrafter_passed_microseconds"]
    assert times[-1] - times[0] < by_the_clock < 1e6 * (ended - began)
    logging.log(log_fn=lambda *_: pytest.fail("there were no verifications"))


def test_plain_engines_export_none_of_our_metrics(make_engine: MakeEngine, random_target: Path) -> None:
    """Runs last: every engine with statistics removes the metrics of earlier engines from the process's registry."""
    plain = make_engine(random_target, disable_log_stats=False)
    assert tokens(generate(plain, [[5, 6, 7]], params(max_tokens=3)))
    assert not any("redrafter" in metric.name for metric in plain.get_metrics())
