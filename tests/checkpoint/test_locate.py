# SPDX-License-Identifier: Apache-2.0
"""The places where a drafter is looked for, and their order."""

from pathlib import Path

import pytest

from redrafter_vllm.checkpoint.locate import DrafterNotFoundError, registry_dir, resolve_drafter


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("REDRAFTER_CHECKPOINT", raising=False)
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "registry"))
    return tmp_path


def checkpoint(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    return path


def test_order_of_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = home / "org" / "model"
    target.mkdir(parents=True)
    registered = checkpoint(home / "registry" / "model")
    assert resolve_drafter("redrafter", str(target)) == registered
    beside = checkpoint(target / "redrafter")
    assert resolve_drafter(None, str(target)) == beside
    explicit = checkpoint(home / "explicit")
    monkeypatch.setenv("REDRAFTER_CHECKPOINT", str(explicit))
    assert resolve_drafter("redrafter", str(target)) == explicit
    assert resolve_drafter(str(beside), str(target)) == beside


def test_hub_targets_have_a_registry_name(home: Path) -> None:
    assert registry_dir("lmsys/vicuna-7b-v1.3") == home / "registry" / "lmsys--vicuna-7b-v1.3"
    registered = checkpoint(home / "registry" / "lmsys--vicuna-7b-v1.3")
    assert resolve_drafter("redrafter", "lmsys/vicuna-7b-v1.3") == registered


def test_nothing_found_lists_the_places_and_the_command(home: Path) -> None:
    with pytest.raises(DrafterNotFoundError) as error:
        resolve_drafter("redrafter", "org/name")
    message = str(error.value)
    assert "REDRAFTER_CHECKPOINT" in message and "org/name/redrafter" in message
    assert str(home / "registry" / "org--name") in message
    assert "`redrafter train --target org/name --data DATA`" in message


def test_an_explicit_place_without_a_drafter_is_an_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint(home / "registry" / "org--name")
    monkeypatch.setenv("REDRAFTER_CHECKPOINT", str(home / "nowhere"))
    with pytest.raises(DrafterNotFoundError, match="does not hold a drafter"):
        resolve_drafter("redrafter", "org/name")


@pytest.mark.parametrize("path", ["./missing", "/missing/drafter", "~/missing", "a/b/c", "missing"])
def test_a_path_that_is_not_there(home: Path, path: str) -> None:
    with pytest.raises(DrafterNotFoundError, match="not a directory"):
        resolve_drafter(path, "org/name")


def test_a_drafter_on_the_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, downloads = checkpoint(home / "snapshot"), []
    (place / "config.json").write_text('{"model_type": "recurrent_drafting_drafter"}')

    def download(repo_id: str, allow_patterns: list[str]) -> str:
        downloads.append((repo_id, *allow_patterns))
        return str(place)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_drafter("org/drafter", "org/name") == place
    assert downloads == [("org/drafter", "config.json"), ("org/drafter", "*.json", "*.safetensors")]


def test_home_of_the_registry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("REDRAFTER_HOME", "~/elsewhere")
    assert registry_dir("org/name") == home / "elsewhere" / "org--name"
