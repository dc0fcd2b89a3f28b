# SPDX-License-Identifier: Apache-2.0
"""Upload to the hub: what is refused before a training, and what is uploaded after it."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, create_autospec

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from redrafter_training.__main__ import main
from redrafter_training.run import hub
from redrafter_training.run.hub import HubError, check_repository, push
from tests.training.small_command import ASSET, small_command, write_data

COMMIT = "the address of a commit"
FILES = [".gitattributes", "README.md", "config.json", "model.safetensors", "training.json"]


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[MagicMock]:
    """The hub, with a token and an empty repository; calls that the library does not have are errors."""
    made = create_autospec(HfApi, instance=True)
    made.list_repo_files.return_value = [".gitattributes"]
    made.upload_folder.return_value = SimpleNamespace(commit_url=COMMIT)
    monkeypatch.setattr(hub, "HfApi", lambda: made)
    monkeypatch.setattr(hub, "get_token", lambda: "secret")
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    return made


@pytest.mark.parametrize(("name", "message"), [("a//b", "push_to_hub: "), ("drafter", "owner/name, not drafter")])
def test_names_that_are_no_repository(name: str, message: str, api: MagicMock) -> None:
    with pytest.raises(HubError, match=message):
        check_repository(name, None, overwrite=False)
    api.whoami.assert_not_called()


def test_without_a_token_or_network(api: MagicMock, monkeypatch: pytest.MonkeyPatch) -> None:
    api.whoami.side_effect = httpx.ConnectError("no route")
    with pytest.raises(HubError, match="the hub does not take me/drafter: no route"):
        check_repository("me/drafter", None, overwrite=False)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(HubError, match="needs a token of the hub: hf auth login, or set HF_TOKEN"):
        check_repository("me/drafter", None, overwrite=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        check_repository("me/drafter", None, overwrite=False)


def test_only_a_drafter_of_the_same_run_is_replaced(api: MagicMock, tmp_path: Path) -> None:
    check_repository("me/drafter", None, overwrite=False)
    api.list_repo_files.return_value = FILES
    report = tmp_path / "training.json"
    report.write_text(json.dumps({"run": "abc"}))
    api.hf_hub_download.return_value = str(report)
    check_repository("me/drafter", "abc", overwrite=False)
    check_repository("me/drafter", None, overwrite=True)
    for run in (None, "other"):
        with pytest.raises(HubError, match=r"something else than this run .config.json, model"):
            check_repository("me/drafter", run, overwrite=False)
    report.write_text("[]")
    with pytest.raises(HubError, match="something else"):
        check_repository("me/drafter", "abc", overwrite=False)
    response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
    api.list_repo_files.side_effect = RepositoryNotFoundError("none", response=response)
    check_repository("me/new", None, overwrite=False)


def test_a_push_by_its_calls(api: MagicMock, tmp_path: Path) -> None:
    assert push(tmp_path, "me/drafter", private=True) == COMMIT
    api.create_repo.assert_called_once_with("me/drafter", private=True, exist_ok=True)
    given = api.upload_folder.call_args.kwargs
    assert given["repo_id"] == "me/drafter" and given["folder_path"] == tmp_path
    assert {"config.json", "model.safetensors", "training.json", "README.md"} <= set(given["allow_patterns"])


@pytest.mark.slow
def test_the_command_pushes_at_the_end_and_says_so(
    api: MagicMock, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--max-steps", "1", "--push-to-hub", "me/drafter", "--hub-private")
    out = tmp_path / "out"
    command = small_command(ASSET, write_data(tmp_path / "data.json"), out, *more)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert main(command) == 1
    assert "needs a token" in capsys.readouterr().err
    assert not out.exists() and not (tmp_path / "out.run").exists()

    monkeypatch.setattr(hub, "get_token", lambda: "secret")
    uploaded: list[list[str]] = []
    api.upload_folder.side_effect = lambda **given: (
        uploaded.append(sorted(path.name for path in given["folder_path"].iterdir())),
        api.upload_folder.return_value,
    )[1]
    assert main(command) == 0
    assert uploaded == [["README.md", "config.json", "model.safetensors", "training.json"]]
    assert f"uploaded: {COMMIT}" in capsys.readouterr().out

    api.upload_folder.side_effect = httpx.ConnectError("no route")
    assert main(command) == 1
    message = capsys.readouterr().err
    assert f"complete, but could not be uploaded (no route): hf upload me/drafter {out}" in message


def test_private_needs_a_repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(small_command(ASSET, tmp_path / "data.json", tmp_path / "out", "--hub-private"))
    assert "push_to_hub, which is not given" in capsys.readouterr().err
