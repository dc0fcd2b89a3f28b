# SPDX-License-Identifier: Apache-2.0
"""Hidden states on disk: storing, refusals, and training from them compared with training online."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from redrafter_training.__main__ import main
from redrafter_training.config.recipe import Budget, DistillConfig, ResponseConfig
from redrafter_training.data.windows import Windows, text_batches
from redrafter_training.distributed.context import LocalContext
from redrafter_training.hidden_states.store import HiddenCache, HiddenCacheError, StoredStates, max_bytes
from redrafter_training.hidden_states.target import CachedTarget, batches_by_length, fill
from redrafter_training.hidden_states.text_index import TextIndex, UnknownTextError, texts_of
from redrafter_training.target.model import TargetModel, TargetOutputs
from redrafter_training.tiny_target import train as target_command
from redrafter_training.tiny_target.train import RECIPES
from redrafter_training.trainer.gradients import Replica, accumulate_gradients
from redrafter_training.trainer.loop import build_drafter, distill
from redrafter_training.trainer.metrics import depth_figures
from redrafter_training.trainer.state import read_state
from redrafter_vllm.utils.atomic import remove_unfinished
from tests.paths import ROOT
from tests.training.full_disk import disk_of

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = DistillConfig(
    Budget(8), beam_length=3, window=24, batch_size=4, chunk=7, responses=ResponseConfig(max_prompt=8, min_prompt=2)
)


def batches(count: int = 3) -> list[Windows]:
    """Rows with padding, among them one that ends in the padding token."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        loss_mask = torch.arange(24) < torch.randint(8, 25, (4, 1), generator=generator)
        tokens = torch.randint(40, (4, 24), generator=generator) * loss_mask
        tokens[0, int(loss_mask[0].sum()) - 2 :] = 0
        made.append(Windows(tokens, loss_mask))
    return made


def states(tokens: int) -> StoredStates:
    return StoredStates(torch.ones(tokens, 16), torch.arange(tokens))


def cached(target: TargetModel, folder: Path, data: list[Windows], **options: Any) -> CachedTarget:
    index, trained = texts_of(data, len(data), data[0].rows(torch.empty(0, dtype=torch.long)))
    cache = HiddenCache(folder, index.lengths, 16, **options)
    cache.begin({}, {}, target.head())
    fill(cache, index, target, cache.missing(), LocalContext(), tokens=60, trained=trained)
    return CachedTarget(cache, index, cache.head(), torch.device("cpu"))


class Rounded(TargetModel):
    """The online target with hidden states rounded as in the cache, and logits from these."""

    def __init__(self, target: TargetModel) -> None:
        super().__init__(target.model)
        self.alone = target.head()

    def outputs(
        self, tokens: Tensor, positions: Tensor | None = None, draft_tokens: Tensor | None = None
    ) -> TargetOutputs:
        outputs = super().outputs(tokens, positions)
        hidden = outputs.hidden.bfloat16()
        return TargetOutputs(hidden, self.alone.restricted(draft_tokens).logits(hidden), outputs.top1_ids)


def gradients(target: Any, batch: Windows) -> tuple[float, Tensor]:
    drafter, context = build_drafter(target, CONFIG), LocalContext()
    embedding = target.embedding.float()
    figures = accumulate_gradients(Replica(drafter, context), embedding, target, batch, CONFIG, context)
    return figures.loss, torch.cat([p.grad.flatten() for p in drafter.parameters() if p.grad is not None])


def test_loss_and_gradient_are_those_of_the_rounded_target(tiny_target: TargetModel, tmp_path: Path) -> None:
    data = batches()
    target = cached(tiny_target, tmp_path, data, shard_bytes=2000)
    assert len(list(tmp_path.glob("hidden-*"))) > 3
    rounded = Rounded(tiny_target)
    for batch in data:
        # The fill has the rows in other batches, which may change the last bit of some sums.
        found, expected = gradients(target, batch), gradients(rounded, batch)
        assert found[0] == pytest.approx(expected[0], rel=1e-3)
        assert (found[1] - expected[1]).norm() < 5e-3 * expected[1].norm()
        online = gradients(tiny_target, batch)
        assert found[0] == pytest.approx(online[0], rel=5e-3)
        assert (found[1] - online[1]).norm() < 0.02 * online[1].norm()


def test_rows_are_found_in_other_batches_and_lengths(tiny_target: TargetModel, tmp_path: Path) -> None:
    data = batches()
    target = cached(tiny_target, tmp_path, data)
    rows = torch.tensor([2, 0])
    mixed = torch.cat([data[1].tokens[rows], torch.zeros(2, 6, dtype=torch.long)], 1)
    kept = torch.tensor([1, 5, 30])
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = target.outputs(mixed), tiny_target.outputs(mixed)
        restricted = target.outputs(mixed, draft_tokens=kept)
    counted = data[1].loss_mask[rows]
    assert 0 < counted.sum() < counted.numel()
    difference = (found.hidden[:, :24] - expected.hidden[:, :24].bfloat16())[counted].abs().max()
    assert difference <= 0.02 * expected.hidden.abs().max()
    assert found.hidden.dtype == torch.bfloat16
    assert found.logits.shape == (2, 30, 40)
    near_tie = expected.logits.float().topk(2).values.diff().abs()[:, :24, 0] < 0.01
    assert ((found.top1_ids == expected.top1_ids)[:, :24] | near_tie)[counted].all()
    assert (found.top1_ids[:, 24:] == -1).all()
    assert torch.equal(restricted.top1_ids, found.top1_ids)
    torch.testing.assert_close(restricted.logits, found.logits[..., kept])
    assert not found.hidden[:, 24:].any()
    with pytest.raises(UnknownTextError, match="row 1"):
        target.outputs(torch.stack([data[0].tokens[1], data[0].tokens[1].flip(0)]))


def test_documents_of_a_row_are_separate_texts() -> None:
    first, second = [5, 6, 7], [8, 9, 0]
    index = TextIndex()
    row = torch.tensor([[*first, *second, 0, 0]])
    positions = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    loss_mask = torch.tensor([[1, 1, 0, 1, 1, 1, 0, 0]]).bool()

    class Packed(Windows):
        @property
        def positions(self) -> Tensor:
            return positions

    index.add(Packed(row, loss_mask))
    assert index.lengths == [3, 3]  # the 0 at the second document's end counts, padding does not
    assert [index.tokens(number).tolist() for number in range(2)] == [first, second]
    other = torch.tensor([[8, 9, 0, 5, 6, 7]])
    assert list(index.find(other, torch.tensor([[0, 1, 2, 0, 1, 2]]))) == [(0, 0, 1), (0, 3, 0)]
    with pytest.raises(UnknownTextError):
        list(index.find(other))


def test_training_from_the_cache_is_training_online(tiny_target: TargetModel, tmp_path: Path) -> None:
    data = batches()
    repeated = [data[step % 3] for step in range(8)]
    held_out = batches(5)[4]
    with pytest.raises(TypeError, match="Repeated"):
        texts_of(iter(repeated), 8, held_out)
    index, trained = texts_of(repeated, 8, held_out)
    assert (trained, len(index)) == (12, 16)
    cache = HiddenCache(tmp_path, index.lengths, 16)
    cache.begin({}, {}, tiny_target.head())
    fill(cache, index, tiny_target, cache.missing(), LocalContext(), tokens=80, trained=trained)
    offline = CachedTarget(cache, index, cache.head(), torch.device("cpu"))
    drafters, losses, figures = [], [], []
    for target in (tiny_target, offline):
        drafter = build_drafter(target, CONFIG)
        history = distill(drafter, target, repeated, replace(CONFIG, passage=0), quiet=True)
        drafters.append(torch.cat([p.detach().flatten() for p in drafter.parameters()]))
        losses.append([step.loss for step in history])
        figures.append(depth_figures(drafter, target, held_out, 3).divergence)
    # bfloat16 keeps 8 bits; a step's loss moves by far more from one batch to the next.
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert figures[1] == pytest.approx(figures[0], rel=0.01)
    start = torch.cat([p.detach().flatten() for p in build_drafter(tiny_target, CONFIG).parameters()])
    assert (drafters[1] - drafters[0]).norm() < 0.1 * (drafters[0] - start).norm()


def test_the_body_does_not_run(tiny_target: TargetModel, tmp_path: Path) -> None:
    data = batches()
    target = cached(tiny_target, tmp_path, data)

    def fail(*args: Any) -> None:
        raise AssertionError("the body ran")

    tiny_target.model.model.register_forward_pre_hook(fail)
    drafter = build_drafter(target, CONFIG)
    assert len(distill(drafter, target, data, replace(CONFIG, budget=Budget(3)), quiet=True)) == 3


def test_interrupted_fill_keeps_its_shards(tiny_target: TargetModel, tmp_path: Path) -> None:
    data = batches()
    whole = cached(tiny_target, tmp_path / "whole", data, shard_bytes=2000)
    del whole
    index, trained = texts_of(data, 3, data[0].rows(torch.empty(0, dtype=torch.long)))

    def part(rank: int, world_size: int, shards: list[int] | None = None) -> HiddenCache:
        cache = HiddenCache(tmp_path / "parts", index.lengths, 16, shard_bytes=2000)
        context = LocalContext()
        context.rank, context.world_size = rank, world_size  # type: ignore[misc]
        shards = cache.missing() if shards is None else shards
        fill(cache, index, tiny_target, shards, context, tokens=60, trained=trained)
        return cache

    cache = HiddenCache(tmp_path / "parts", index.lengths, 16, shard_bytes=2000)
    cache.begin({}, {}, tiny_target.head())
    everything = cache.missing()
    part(1, 2)
    (tmp_path / "parts" / "hidden-00001.safetensors").write_bytes(b"torn")
    (tmp_path / "parts" / ".hidden-00000.safetensors-x.writing").touch()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("hidden-*[3579].safetensors")}
    assert kept
    cache = HiddenCache(tmp_path / "parts", index.lengths, 16, shard_bytes=2000)
    assert cache.missing() == [0, 1, *everything[2::2]]
    remove_unfinished(tmp_path / "parts")
    part(0, 1)
    assert not cache.missing()
    assert all((tmp_path / "parts" / name).stat().st_mtime_ns == time for name, time in kept.items())
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    assert len(list((tmp_path / "whole").iterdir())) == len(list((tmp_path / "parts").iterdir()))


def test_full_disk_leaves_complete_shards(tmp_path: Path) -> None:
    cache = HiddenCache(tmp_path, [10, 1000], 16, shard_bytes=10 * 36)
    cache.write(0, states(10))
    with disk_of(4096), pytest.raises(HiddenCacheError, match=r"hidden-00001.* could not be written .*make room"):
        cache.write(1, states(1000))
    assert [path.name for path in tmp_path.iterdir()] == ["hidden-00000.safetensors"]
    assert cache.missing() == [1]
    assert torch.equal(cache.read(0).hidden, torch.ones(10, 16, dtype=torch.bfloat16))
    assert cache.read(0).top1_ids.tolist() == list(range(10))


def test_shards_of_unknown_origin_are_deleted(tiny_target: TargetModel, tmp_path: Path) -> None:
    cache = HiddenCache(tmp_path, [10], 16)
    cache.begin({"dtype": "float32"}, {}, tiny_target.head())
    cache.write(0, states(10))
    assert cache.check_identity({"dtype": "float32"}, {})
    (tmp_path / "cache.json").unlink()
    assert not cache.check_identity({"dtype": "float32"}, {})
    cache.begin({"dtype": "bfloat16"}, {}, tiny_target.head())
    assert cache.missing() == [0]
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(HiddenCacheError, match=r"cache\.json cannot be read"):
        cache.check_identity({}, {})


def test_upper_bound_by_hand() -> None:
    config = replace(CONFIG, response_fraction=0.5, responses=replace(CONFIG.responses, count=10))
    # 8 steps with 2 rows of text and 2 of 10 responses, 3 rows held out; 24 tokens of 16 numbers of 2 bytes and an id
    assert max_bytes(config, 16, 3) == (16 + 10 + 3) * 24 * (16 * 2 + 4)


def test_fixed_windows_are_repeated_in_another_order() -> None:
    files = [torch.arange(100), torch.arange(100, 179)]  # 17 windows at any phase, 5 batches
    stream = text_batches(files, 10, None, 4, 0, fixed=True)
    first, second = (torch.cat(list(islice(stream, 5))) for _ in range(2))
    rows = [sorted(map(tuple, part.tolist())) for part in (first, second)]
    assert rows[0] == rows[1]
    assert not torch.equal(first, second)
    moving = text_batches(files, 10, None, 4, 0)
    epochs = [torch.cat(list(islice(moving, 5))) for _ in range(2)]
    assert torch.equal(epochs[0], first)
    assert sorted(map(tuple, epochs[1].tolist())) != rows[0]


@pytest.fixture(scope="module")
def command(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    out = tmp_path_factory.mktemp("target")
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    config = replace(RECIPES["short"], budget=Budget(1), window=32, head_dim=16, intermediate_size=48, **sizes)
    target_command.make_target("tiny", config, out, corpus_root, quiet=True)
    sizes_of_run = "--max-steps 24 --window 32 --batch-size 4 --response-fraction 0.5"
    answers = "--responses.count 8 --responses.max-prompt 20"
    rest = "--beam-length 2 --evaluate-windows 4 --evaluate false --device cpu --max-seconds .inf --checkpoint-every 8"
    return f"--target {out} --data {corpus_root} --recipe short {sizes_of_run} {answers} {rest}".split()


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_command_with_a_cache(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fills, trains, and trains again without the target; agrees with the same training online."""
    cache, path = tmp_path / "states", Path(command[1]) / "model.safetensors"
    with_cache = [*command, "--hidden-cache", str(cache)]
    assert main([*with_cache, "--dry-run", "--out", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr().out
    # 24 steps with 2 rows of text, 8 responses, 4 rows held out; 32 tokens of 32 numbers of 2 bytes and an id
    assert "at most 127.5 KiB" in shown
    assert not cache.exists()

    assert main([*with_cache, "--out", str(tmp_path / "first")]) == 0
    shown = capsys.readouterr().out
    assert "hidden states of 60 texts" in shown, shown
    assert "127.5 KiB in 1 shards, of which 1 with 127.5 KiB are missing" in shown

    assert main([*with_cache, "--passage", "0", "--out", str(tmp_path / "rows")]) == 0
    assert main([*command, "--fixed-windows", "--out", str(tmp_path / "online")]) == 0
    losses = [read_state(tmp_path / f"{name}.run/checkpoints/step-00000024")["history"] for name in ("rows", "online")]
    torch.testing.assert_close(losses[0][:, 0], losses[1][:, 0], rtol=0.02, atol=0)

    shutil.copytree(tmp_path / "first.run", tmp_path / "second.run")
    shutil.rmtree(tmp_path / "second.run" / "checkpoints")
    monkeypatch.setattr(
        "redrafter_training.run.training.load_target", lambda *args: pytest.fail("the target was loaded")
    )
    assert main([*with_cache, "--out", str(tmp_path / "second")]) == 0
    assert weights(tmp_path / "second") == weights(tmp_path / "first")
    # Also from the checkpoint of step 16, in the middle of a group of batches.
    shutil.rmtree(tmp_path / "second.run" / "checkpoints" / "step-00000024")
    assert main([*with_cache, "--out", str(tmp_path / "second")]) == 0
    assert weights(tmp_path / "second") == weights(tmp_path / "first")

    capsys.readouterr()
    monkeypatch.undo()
    assert main([*with_cache, "--seed", "1", "--out", str(tmp_path / "other")]) == 1
    error = capsys.readouterr().err
    assert "computed from other inputs (seed: 0 -> 1)" in error
    assert main([*with_cache, "--target-dtype", "float16", "--out", str(tmp_path / "other")]) == 1
    assert re.search(r"\bdtype: (float32|bfloat16) -> float16", capsys.readouterr().err)
    stored = path.read_bytes()
    path.write_bytes(stored[:-3] + bytes([stored[-3] ^ 1]) + stored[-2:])
    assert main([*with_cache, "--out", str(tmp_path / "other")]) == 1
    assert "computed from other inputs (target: " in capsys.readouterr().err
    path.write_bytes(stored)
    # What the states do not depend on may change.
    assert main([*with_cache, "--beam-length", "1", "--max-steps", "24", "--out", str(tmp_path / "other")]) == 0

    monkeypatch.setattr("redrafter_training.hidden_states.target.free_space", lambda folder: 1000)
    assert main([*command, "--hidden-cache", str(tmp_path / "small"), "--out", str(tmp_path / "x")]) == 1
    assert "small has 1000 bytes free" in capsys.readouterr().err
    assert not (tmp_path / "small").exists()


@pytest.mark.process
def test_killed_fill_goes_on(command: list[str], tmp_path: Path) -> None:
    """After kill -9, the same command keeps the finished shards and gives the result of an uninterrupted one."""
    script = "import sys, redrafter_training.hidden_states.store as h, redrafter_training.hidden_states.target as c\n"
    script += "c.open_cached_target.__kwdefaults__['shard_bytes'] = 4096\n"
    slow = "import time; w = h.HiddenCache.write\nh.HiddenCache.write = lambda *a: (w(*a), time.sleep(0.2))\n"
    run = "from redrafter_training.__main__ import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    cache = tmp_path / "states"
    arguments = [*command, "--hidden-cache", str(cache), "--out", str(tmp_path / "out")]
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", script + slow + run, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=output,
        )
        deadline = time.monotonic() + 120
        while len(list(cache.glob("hidden-*"))) < 3 and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "output").read_text()
    finished = {path: path.stat().st_mtime_ns for path in cache.glob("hidden-*")}
    assert len(finished) < 20
    subprocess.run(
        [sys.executable, "-c", script + run, *arguments], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    shards = {path: path.stat().st_mtime_ns for path in cache.glob("hidden-*")}
    assert len(shards) > 20
    assert finished.items() <= shards.items()
    assert main([*command, "--hidden-cache", str(tmp_path / "again"), "--out", str(tmp_path / "whole")]) == 0
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_texts_of_similar_length_share_a_batch() -> None:
    lengths = [5, 9, 2, 9, 3, 30, 4]
    # 2, 3, 4 and 5 tokens are 20 with their padding, and two texts of 9 are 18; a longer text is alone.
    assert list(batches_by_length(range(7), lengths.__getitem__, 20)) == [[2, 4, 6, 0], [1, 3], [5]]
    assert list(batches_by_length([1, 0], lengths.__getitem__, 17)) == [[0], [1]]
    assert list(batches_by_length([], lengths.__getitem__, 20)) == []
