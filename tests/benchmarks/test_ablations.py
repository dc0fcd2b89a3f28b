# SPDX-License-Identifier: Apache-2.0
from pathlib import Path
from typing import Any

import pytest

from benchmarks.assets import ASSET
from benchmarks.training.ablations import PUBLISHED, VARIANTS, Options, Variant, run, summarise
from redrafter_training.config.recipe import LossConfig


def result(group: str, tokens_per_step: float) -> dict[str, Any]:
    return {"group": group, "name": "x", "held_out": {"4x4": {"tokens_per_step": tokens_per_step}}}


def test_gains_count_accepted_drafts_only() -> None:
    results = [result("ours", 2.4), result(PUBLISHED, 2.0), result("ours", 2.6), result(PUBLISHED, 2.0)]
    ours, published = summarise(results, "4x4")
    # The mean of 1.4 and 1.6 drafts per step is 1.5, 50 % more than the published recipe's 1.0.
    assert ours["accepted_per_step"] == pytest.approx(1.5)
    assert ours["over_published"] == pytest.approx(0.5)
    assert ours["standard_deviation"] == pytest.approx(0.02**0.5)
    assert published["over_published"] == 0.0
    assert ours["seeds"] == 2


def test_variants_change_the_recipe() -> None:
    options = Options(Path("t"), steps=7, answers=("unknown",))
    configs = {v.file_stem: options.config(v, 3, 1000) for v in VARIANTS}
    assert len(configs) == len(VARIANTS)
    ours = options.config(VARIANTS[0], 3, 1000)
    assert (ours.budget.max_steps, ours.seed, ours.draft_vocab_size) == (7, 3, None)
    for variant in VARIANTS[1:]:
        assert options.config(variant, 3, 1000) != ours, variant.name
    published = next(v for v in VARIANTS if v.group == PUBLISHED)
    config = options.config(published, 3, 1000)
    assert config.loss == LossConfig(label_share=1.0, labels="data")
    assert config.response_fraction == 0
    assert options.config(VARIANTS[-1], 3, 1000).draft_vocab_size == 250


def test_given_responses_are_used_by_their_variant_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_responses = Options(Path("t"), seeds=(0,), answers=("unknown",))
    for variant in VARIANTS:
        config = with_responses.config(variant, 0, 1000)
        assert config.responses.folders == (("unknown",) if variant.name == "unknown prompts" else ())
        assert bool(config.responses.longest_repeat) == (variant.name != "repetition kept")
    trained: list[str] = []

    def no_training(self: Options, variant: Variant, seed: int) -> Path:
        trained.append(variant.name)
        file = tmp_path / "done.json"
        file.write_text("{}")
        return file

    monkeypatch.setattr(Options, "file", no_training)
    run(Options(Path("t"), seeds=(0,)))
    assert trained == [variant.name for variant in VARIANTS if variant.name != "unknown prompts"]


@pytest.mark.slow
@pytest.mark.skipif(not ASSET.is_dir(), reason="the small target is not committed here")
def test_finished_trainings_are_not_repeated(tmp_path: Path) -> None:
    variants = [Variant("a", "full"), Variant("b", "quarter", {"draft_vocab_size": 1 / 4})]
    options = Options(ASSET, steps=2, seeds=(0,), responses=8, prompts=2, new_tokens=12, work=tmp_path)
    first = run(options, variants)
    assert [(r["group"], r["steps"]) for r in first] == [("a", 2), ("b", 2)]
    assert first[0]["coverage"] == 1.0 > first[1]["coverage"] > 0.5
    assert all(r["held_out"]["4x4"]["tokens_per_step"] >= 1 for r in first)
    stamps = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert run(options, variants) == first
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == stamps
