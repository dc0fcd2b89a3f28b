# SPDX-License-Identifier: Apache-2.0
"""The folders that a training may write to, and those that it must not change."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from redrafter_training.config.job import Job
from redrafter_training.run.plan import Plan
from redrafter_training.run.preflight import check_places, check_room
from redrafter_training.tiny_target.train import check_new_target
from redrafter_training.trainer.export import export
from redrafter_training.utils.memory import GIB
from redrafter_training.utils.run_folder import give_name, run_name
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.places import check_drafter_place, drafter_folder
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils.paths import PlaceError, user_path, user_place
from tests.training.small_command import tree

CONFIG = DrafterConfig(vocab_size=7, hidden_size=4, exit_dim=8, num_draft_layers=1)


def put(path: Path, text: str = "mine") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def make_target(folder: Path) -> Path:
    put(folder / "config.json", json.dumps({"model_type": "llama"}))
    put(folder / "model.safetensors")
    return folder


def target_itself(root: Path) -> Path:
    return make_target(root / "target")


def target_by_link(root: Path) -> Path:
    (root / "link").symlink_to(make_target(root / "target"))
    return root / "link"


def target_by_dots(root: Path) -> Path:
    make_target(root / "target")
    return root / "target" / "redrafter" / ".."


def target_around(root: Path) -> Path:
    make_target(root / "models" / "target")
    return root / "models"


def target_with_drafter_inside(root: Path) -> Path:
    config = {"model_type": "llama", "redrafter": {"num_draft_layers": 1}}
    put(root / "target" / "config.json", json.dumps(config))
    return root / "target"


def data(root: Path) -> Path:
    put(root / "data" / "train.jsonl")
    return root / "data"


def checkout(root: Path) -> Path:
    export(Drafter(CONFIG), root / "checkout", {})
    put(root / "checkout" / ".git" / "HEAD")
    return root / "checkout"


def weights_alone(root: Path) -> Path:
    put(root / "weights" / "model.safetensors")
    return root / "weights"


def file(root: Path) -> Path:
    put(root / "file")
    return root / "file"


def inside_a_file(root: Path) -> Path:
    put(root / "file")
    return root / "file" / "drafter"


def link_to_nothing(root: Path) -> Path:
    (root / "link").symlink_to(root / "nothing")
    return root / "link"


def too_long(root: Path) -> Path:
    return root / ("x" * 300)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (target_itself, "something else than a drafter"),
        (target_by_link, "something else than a drafter"),
        (target_by_dots, "something else than a drafter"),
        (target_around, "something else than a drafter (target)"),
        (target_with_drafter_inside, "something else than a drafter"),
        (data, "something else than a drafter (train.jsonl)"),
        (checkout, "something else than a drafter (.git)"),
        (weights_alone, "something else than a drafter (model.safetensors)"),
        (file, "is a file"),
        (inside_a_file, "is a file"),
        (link_to_nothing, "a broken link"),
        (too_long, "cannot be used as a place"),
    ],
)
def test_only_drafters_are_replaced(make: Callable[[Path], Path], told: str, tmp_path: Path) -> None:
    out = make(tmp_path)
    before = tree(tmp_path)
    target = str(tmp_path / "target") if (tmp_path / "target").is_dir() else "org/name"
    with pytest.raises(PlaceError) as caught:
        check_places(Job(target, "stdlib", out=out, run_dir=tmp_path / "run", overwrite=True))
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tree(tmp_path) == before
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["", "new", "deep/new", "empty"])
def test_new_output_folders(place: str, tmp_path: Path) -> None:
    """Also the default folder in the target; the check creates no files."""
    (tmp_path / "empty").mkdir()
    target = make_target(tmp_path / "target")
    before = sorted(tmp_path.rglob("*"))
    check_places(Job(str(target), "stdlib", out=tmp_path / place if place else None))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_drafter_is_replaced_by_its_own_run_or_with_overwrite(tmp_path: Path) -> None:
    target = make_target(tmp_path / "target")
    job = Job(str(target), "stdlib")
    run = job.run_folder
    run.mkdir()
    give_name(run)
    export(Drafter(CONFIG), job.out_dir, {"run": run_name(run)})
    check_places(job)
    check_places(replace(job, resume=False))
    for other in (lambda: give_name(run), lambda: shutil.rmtree(run)):
        other()
        for resume in (True, False):
            with pytest.raises(PlaceError, match=r"holds a drafter already.*--overwrite"):
                check_places(replace(job, resume=resume))
            check_places(replace(job, resume=resume, overwrite=True))


def test_outputs_must_not_contain_each_other(tmp_path: Path) -> None:
    job = Job("org/name", "stdlib", out=tmp_path / "out")
    for wrong in (
        replace(job, run_dir=tmp_path / "out"),
        replace(job, run_dir=tmp_path / "out" / "run"),
        replace(job, hidden_cache=tmp_path / "out" / "states"),
        replace(job, hidden_cache=tmp_path / "other" / ".." / "out"),
        replace(job, run_dir=tmp_path / "states" / "run", hidden_cache=tmp_path / "states"),
    ):
        with pytest.raises(PlaceError, match="is inside"):
            check_places(wrong)
    inside = tmp_path / "run"
    check_places(replace(job, run_dir=inside, out=inside / "drafter", hidden_cache=inside / "states"))


@pytest.mark.parametrize("key", ["run_dir", "hidden_cache"])
def test_folders_with_other_files_are_refused(key: str, tmp_path: Path) -> None:
    put(tmp_path / "project" / "config.yaml", "mine: true")
    put(tmp_path / "project" / "checkpoints" / "step-00000001" / "state.pt")
    before = tree(tmp_path)
    for place in (
        tmp_path / "project",
        tmp_path / "project" / "config.yaml",
        tmp_path / "project" / "config.yaml" / "x",
    ):
        job = replace(Job("org/name", "stdlib", out=tmp_path / "out", resume=False), **{key: place})
        with pytest.raises(PlaceError, match=r"holds something else|do not belong to a run|is a file"):
            check_places(job)
    assert tree(tmp_path) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_write_permissions_are_checked_first(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(PlaceError, match="cannot be written to"):
        check_drafter_place(tmp_path / "locked" / "drafter", replace=True)


def test_memory_and_disk_space_are_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("org/name", "stdlib", out=tmp_path / "out")
    memory = {"drafter's weights and gradients": 2 * GIB, "optimizer": 2 * GIB}
    plan = Plan(CONFIG, 1, GIB // 2, 1, memory, 0)
    # Three states of weights and moments, 3 GiB each, and the drafter in two bytes per parameter.
    monkeypatch.setattr("redrafter_training.run.preflight.free_memory", lambda device: 4 * GIB)
    monkeypatch.setattr("redrafter_training.run.preflight.free_space", lambda place: 10 * GIB)
    check_room(job, plan, torch.device("cpu"))
    monkeypatch.setattr("redrafter_training.run.preflight.free_space", lambda place: 10 * GIB - 1)
    with pytest.raises(PlaceError, match=r"need 10\.0 GiB and .* has 10\.0 GiB free"):
        check_room(job, plan, torch.device("cpu"))
    monkeypatch.setattr("redrafter_training.run.preflight.free_memory", lambda device: 4 * GIB - 1)
    with pytest.raises(ValueError, match=r"drafter needs 4\.0 GiB .*--exit-dim"):
        check_room(job, plan, torch.device("cpu"))


def test_shards_of_an_older_drafter_are_not_read_again(tmp_path: Path) -> None:
    """An old index beside a new file of weights would make readers load the old shards."""
    torch.manual_seed(0)
    out, drafter = tmp_path / "drafter", Drafter(CONFIG)
    export(Drafter(CONFIG), out, {})
    names = dict.fromkeys(Drafter(CONFIG).state_dict(), "model-00001-of-00001.safetensors")
    (out / "model.safetensors").rename(out / "model-00001-of-00001.safetensors")
    put(out / "model.safetensors.index.json", json.dumps({"weight_map": names}))
    put(out / "README.md", "about it")
    export(drafter, out, {}, torch.float32, overwrite=True)
    loaded = Drafter.from_pretrained(out)
    assert torch.equal(loaded.output.weight, drafter.output.weight)
    assert {path.name for path in out.iterdir()} == {"config.json", "model.safetensors", "training.json", "README.md"}


def test_a_drafter_that_appears_during_the_training_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "drafter"

    def two() -> None:
        with drafter_folder(out, replace=False) as made:
            Drafter(CONFIG).save_pretrained(made)
            export(Drafter(CONFIG), out, {"run": "another"})

    with pytest.raises(PlaceError, match="holds a drafter already"):
        two()
    assert json.loads((out / "training.json").read_text()) == {"run": "another"}
    assert [path.name for path in tmp_path.iterdir()] == ["drafter"]


def test_home_folder_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x") == tmp_path / "x"
    assert user_place("~/x") == str(tmp_path / "x")
    assert user_place("org/name") == "org/name"
    job = Job(
        "~/t",
        "~/d",
        chat_template="~/c",
        out=Path("~/o"),
        run_dir=Path("~/r"),
        init_from=Path("~/i"),
        hidden_cache=Path("~/h"),
    )
    places = (job.target, job.data, job.chat_template, job.out, job.run_dir, job.init_from, job.hidden_cache)
    assert [str(place) for place in places] == [str(tmp_path / name) for name in "tdcorih"]
    for wrong, told in (("", "empty"), ("~nobody-of-that-name/x", "no home folder")):
        with pytest.raises(PlaceError, match=told):
            user_path(wrong)
    with pytest.raises(PlaceError, match="target: a path is empty"):
        Job("", "stdlib")


def test_a_new_target_replaces_nothing(tmp_path: Path) -> None:
    """Except the files of an unfinished training of a target."""
    put(tmp_path / "unfinished" / "tokenizer.json")
    put(tmp_path / "unfinished" / "checkpoint" / "config.json")
    for fine in (tmp_path / "new", tmp_path / "unfinished"):
        check_new_target(fine)
    put(tmp_path / "file")
    for wrong in (make_target(tmp_path / "target"), data(tmp_path), tmp_path / "file"):
        with pytest.raises(PlaceError, match=r"is not empty|is a file"):
            check_new_target(wrong)
