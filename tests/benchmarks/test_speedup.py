# SPDX-License-Identifier: Apache-2.0
"""The speed-up: phases, figures, options."""

from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from rich.console import Console

from benchmarks.models.roofline import Layout, Workload, round_reads, target_step
from benchmarks.serving.speedup import __main__ as main_module
from benchmarks.serving.speedup.__main__ import PLAIN, limits, run
from benchmarks.serving.speedup.engine import Turn
from benchmarks.serving.speedup.options import Options, parse_args
from benchmarks.serving.speedup.report import judge, print_report, problem_of
from redrafter_vllm.bench.child import ChildError
from redrafter_vllm.bench.engine import EngineProcess, Job
from redrafter_vllm.bench.phases import REST, DecodeSteps, Stopwatch
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.shapes import drafter_config, find_shape
from tests.paths import ASSET


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_inner_phases_are_not_counted_twice() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.now += 50  # before any phase
    with watch.phase("outer"):
        clock.now += 1
        with watch.phase("inner"):
            clock.now += 2
        clock.now += 4
        with watch.phase("inner"):
            clock.now += 8
    clock.now += 50
    assert watch.seconds == {"outer": 5, "inner": 10}


def test_steps_with_prompts_do_not_count() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    steps = DecodeSteps(watch)
    prompts: list[list[str]] = [["new"], [], []]
    schedule = steps.schedule(lambda: SimpleNamespace(scheduled_new_reqs=prompts.pop(0)))

    def step() -> None:
        schedule()
        clock.now += 1
        with watch.phase("draft"):
            clock.now += 10

    for _ in range(3):
        steps.step(step)()
    assert steps.count == 2
    assert watch.seconds == {REST: 2, "draft": 20}


def turn(seconds: float, tokens: list[list[int]], steps: list[list[int]], accepted: tuple[int, ...]) -> dict[str, Any]:
    """A turn's counts; prompts take half of the time."""
    return {
        "seconds": seconds,
        "tokens": tokens,
        "steps": steps,
        "decoding": {"tokens": sum(map(len, tokens)) - len(tokens), "seconds": seconds / 2},
        "counters": {"verifications": sum(len(request) - 1 for request in steps), "accepted_at_least": accepted},
        "preemptions": 0,
        "most_at_once": len(tokens),
    }


def test_figures() -> None:
    plain = [turn(seconds, [[1] * 6, [1] * 4], [[1] * 6, [1] * 4], ()) for seconds in (10.0, 20.0, 5.0)]
    # Two verifications, of 3 and 1 tokens, and one of 2.
    ours = [turn(seconds, [[1] * 5, [1, 1, 9]], [[1, 3, 1], [1, 2]], (2, 1)) for seconds in (4.0, 1.0, 8.0)]
    report = judge(plain, ours, 2, {**ours[0], "phases": {"draft": 0.0125}})
    assert report["tokens_per_second"] == {"plain": [1.0, 0.5, 2.0], "redrafter": [2.0, 8.0, 1.0]}
    assert report["speedup"] == pytest.approx(2.0)  # of the medians 2 and 1
    assert report["speedup_by_round"] == pytest.approx([2.0, 16.0, 0.5])
    assert report["tokens_per_step"] == pytest.approx(2.0)
    assert report["decode_tokens_per_second"]["plain"] == pytest.approx([1.6, 0.8, 3.2])
    assert report["decode_tokens_per_second"]["redrafter"] == pytest.approx([3.0, 12.0, 1.5])
    assert report["decode_speedup"] == pytest.approx(3.0 / 1.6)
    assert report["efficiency"] == pytest.approx(3.0 / 1.6 / 2.0)
    assert report["acceptance_by_depth"] == pytest.approx([2 / 3, 1 / 3])
    assert (report["same_requests"], report["requests"]) == (0, 2)
    assert report["milliseconds_per_step"] == {"draft": pytest.approx(12.5)}


def test_figures_of_another_batch_size_are_a_problem() -> None:
    row = {"batch": 4, "preemptions": 0, "most_at_once": 4}
    assert problem_of(row) is None
    assert problem_of(row | {"preemptions": 2}) == "batch 4: 2 preemptions, so its prompts were computed more than once"
    assert problem_of(row | {"most_at_once": 3}) == "batch 4: at most 3 requests ran at once"


def options(**given: Any) -> Options:
    return Options(ASSET, ASSET / "redrafter", **({"drafting": {"ReDrafter": DraftingConfig(2, 2)}} | given))


def test_batches_are_full() -> None:
    several = options(prompts=6, batches=(1, 4, 16))
    assert [several.turn(batch).prompts for batch in several.batches] == [6, 8, 16]
    assert several.engine(None)["max_num_seqs"] == 16


def test_the_cache_holds_the_largest_batch() -> None:
    large = options(batches=(1, 64), drafting={"a": DraftingConfig(4, 4), "b": DraftingConfig(1, 2)}, new_tokens=256)
    # Of the asset a token takes 2 (keys and values) x 4 layers x 2 heads x 64 numbers of 2 bytes.
    assert large.kv_cache_bytes >= 64 * (128 + 256 + 2 * 17) * 2048
    assert large.kv_cache_bytes < 64 * (128 + 256 + 2 * 17) * 2048 * 1.5
    assert large.engine(None)["max_model_len"] == 128 + 256 + 2 * 17
    assert options().kv_cache_bytes < large.kv_cache_bytes / 20


def test_capture_sizes_follow_the_schedule() -> None:
    tree = DraftingConfig(4, 4, adaptive=False)
    fixed = options(drafting={"x": tree}, batches=(1, 4, 16), device="cuda")
    assert fixed.capture_sizes(None) == [1, 2, 4, 16, 32]
    assert fixed.capture_sizes(tree) == [1, 2, 4, 16, 17, 32, 34, 68, 272]
    assert fixed.engine(tree)["compilation_config"] == {"cudagraph_capture_sizes": [1, 2, 4, 16, 17, 32, 34, 68, 272]}
    adaptive = fixed.capture_sizes(DraftingConfig(4, 4))
    assert set(adaptive) > {*fixed.capture_sizes(tree), 2, 6, 10, 14, 8, 24, 40, 56, 32, 96, 160, 224}
    falling = options(drafting={"x": tree}, batches=(1, 16, 64), schedule=((1, 8, 16), (9, 16, 7), (17, 64, 0)))
    assert [falling.nodes(batch, tree) for batch in (1, 8, 9, 16, 17, 64)] == [16, 16, 7, 7, 0, 0]
    assert falling.capture_sizes(tree) == [1, 2, 4, 8, 16, 17, 34, 64, 68, 128, 136]
    assert falling.speculative("x")["num_speculative_tokens_per_batch_size"] == [[1, 8, 16], [9, 16, 7], [17, 64, 0]]
    chain = options(drafting={"x": DraftingConfig(1, 4)}, schedule=falling.schedule)
    assert chain.speculative("x")["num_speculative_tokens_per_batch_size"] == [[1, 8, 4], [9, 16, 4], [17, 64, 0]]
    assert "compilation_config" not in falling.engine(tree)  # a CPU has no graphs
    assert "num_speculative_tokens_per_batch_size" not in fixed.speculative("x")


def test_the_maximum_efficiency_depends_on_layout_and_nodes() -> None:
    drafting = DraftingConfig(2, 2, drafter_quantization="int8", project_embedding=True)
    scheduled = options(drafting={"x": drafting}, schedule=((1, 2, 3), (3, 8, 0)), batches=(8,))
    shape, config = find_shape(str(ASSET)), drafter_config(ASSET / "redrafter")
    work = Workload(DraftingConfig(2, 2, 3), 2, context=128 + 32)
    steps = target_step(shape, work, 3).total + round_reads(config, work, Layout(True, True)).total
    expected = target_step(shape, work, 0).total / steps
    assert limits(scheduled, "x", 2) == {"nodes": 3, "efficiency_ceiling": pytest.approx(expected)}
    assert limits(scheduled, "x", 3) == {"nodes": 0, "efficiency_ceiling": None}


def test_a_way_to_draft_may_have_another_drafter() -> None:
    slim = ASSET / "redrafter-slim"
    both = options(drafting=dict.fromkeys(("a", "b"), DraftingConfig(4, 4)), drafters={"b": slim})
    assert [both.speculative(way)["model"] for way in ("a", "b")] == [str(ASSET / "redrafter"), str(slim)]
    ceilings = [limits(both, way, 1)["efficiency_ceiling"] for way in ("a", "b")]
    assert ceilings[0] < ceilings[1] < 1


class FakeEngine:
    """Emits three tokens for every prompt; the one named `broken` does not start, `dying` fails at its third turn."""

    turns: ClassVar[list[tuple[str, Turn]]] = []

    def __init__(self, job: Job, log: Path) -> None:
        self.name, self.taken = job.name, 0

    def __enter__(self) -> "FakeEngine":
        return self

    def __exit__(self, *_: object) -> None: ...

    def wait_until_ready(self, limit: float) -> str:
        if self.name == "broken":
            raise ChildError("no such kernel")
        return "V2"

    def take(self, requested: Turn) -> dict[str, Any]:
        self.turns.append((self.name, requested))
        self.taken += 1
        if self.name == "dying" and self.taken == 3:
            raise ChildError("out of memory")
        found = turn(2.0, [[1, 2, 3]] * requested.prompts, [[1, 2]] * requested.prompts, (requested.prompts, 0))
        return found | {"most_at_once": requested.batch, "phases": {}}


@pytest.mark.slow
def test_a_failing_way_to_draft_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "EngineProcess", FakeEngine)
    monkeypatch.setattr(FakeEngine, "turns", [])
    ways = {name: DraftingConfig(2, 2) for name in ("broken", "dying", "good", "other")}
    kept: list[int] = []
    report = run(
        options(drafting=ways, batches=(1, 2), rounds=2, prompts=2, device="cuda"),
        lambda report: kept.append(len(report["results"])),
    )
    assert report["failed"] == {"broken": "no such kernel", "dying": "out of memory"}
    assert [(row["drafter"], row["batch"]) for row in report["results"]] == [("good", 1), ("other", 1), ("good", 2)]
    assert kept == [2, 3] and report["runners"] == dict.fromkeys((PLAIN, "dying", "good", "other"), "V2")
    of_good = [requested for name, requested in FakeEngine.turns if name == "good"]
    assert [(requested.batch, requested.tokens) for requested in of_good] == [
        (1, 8),
        (1, None),
        (1, None),
        (2, 8),
        (2, None),
        (2, None),
    ]
    console = Console(width=200, record=True, file=StringIO())
    print_report(report, console)
    assert "broken failed: no such kernel" in console.export_text()


def test_options_from_the_command_line() -> None:
    flags = ["--beam-width", "2", "--nodes", "6", "--project-embedding", "--schedule", "[[1, 2, 6], [3, 9, 0]]"]
    parsed = parse_args(["--target", str(ASSET), *flags, "--eager"])
    assert parsed.drafting == {"ReDrafter": DraftingConfig(2, 4, 6, project_embedding=True)}
    assert parsed.drafter == ASSET / "redrafter"
    assert parsed.schedule == ((1, 2, 6), (3, 9, 0))
    assert parsed.engine(None)["enforce_eager"] is True


def test_several_trees_and_a_chat_from_the_command_line() -> None:
    flags = ["--trees", "1x3 3x4:6", "--drafter-quantization", "int8", "--chat", "mt-bench"]
    parsed = parse_args(["--target", str(ASSET), *flags])
    assert parsed.drafting == {
        "1x3, 3 nodes": DraftingConfig(1, 3, 3, drafter_quantization="int8", adaptive=False, prompt_lookup=False),
        "3x4, 6 nodes": DraftingConfig(3, 4, 6, drafter_quantization="int8", adaptive=False, prompt_lookup=False),
    }
    assert parsed.chat == "mt-bench"
    with pytest.raises(SystemExit):
        parse_args(["--target", str(ASSET), "--trees", "3by4"])


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--rounds", "0", "rounds must be"),
        ("--new-tokens", "1", "new_tokens must be"),
        ("--batch", "0", "batches must be"),
        ("--beam-width", "65", "beam_width=65"),
        ("--schedule", "[[2, 4, 1]]", "must start at 1"),
        ("--schedule", "[1]", "not iterable"),
    ],
)
def test_impossible_options_are_refused(
    flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args(["--target", str(ASSET), flag, value])
    assert message in capsys.readouterr().err


@pytest.mark.process
def test_failed_engine_shows_its_log(tmp_path: Path) -> None:
    job = Job("broken", str(tmp_path / "nowhere"), None, {}, [[1, 2]], 2, {"HF_HUB_OFFLINE": "1"})
    with EngineProcess(job, tmp_path / "log") as engine, pytest.raises(ChildError, match=r"(?s)broken failed.*nowhere"):
        engine.wait_until_ready()
