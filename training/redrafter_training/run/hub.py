# SPDX-License-Identifier: Apache-2.0
"""Upload of a drafter with its card to the Hugging Face hub."""

import json
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from redrafter_vllm.checkpoint.places import CARD_FILE, OWN_FILES, PROVENANCE_FILE
from redrafter_vllm.utils.messages import sentence

NEW = frozenset({".gitattributes", CARD_FILE})  # what a repository may hold before the first upload


class HubError(ValueError):
    """A drafter that cannot be uploaded."""


def check_repository(repository: str, run: str | None, *, overwrite: bool) -> None:
    """Checks that a drafter can be uploaded to `repository` at the end of a training without replacing anything else.

    The repository need not exist yet. A drafter in it is replaced if it is of the same `run`, or with `overwrite`.

    Raises HubError.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as problem:
        raise HubError(f"push_to_hub: {sentence(problem)}") from None
    if repository.count("/") != 1:
        raise HubError(f"push_to_hub needs the name of a repository with its owner, owner/name, not {repository}")
    if constants.HF_HUB_OFFLINE:
        raise HubError("push_to_hub needs the hub, and HF_HUB_OFFLINE is set")
    if get_token() is None:
        raise HubError("push_to_hub needs a token of the hub: hf auth login, or set HF_TOKEN")
    api = HfApi()
    try:
        api.whoami()
        present = set(api.list_repo_files(repository)) - NEW
    except RepositoryNotFoundError:
        return
    except Exception as problem:  # of the network's types, too
        raise HubError(f"push_to_hub: the hub does not take {repository}: {sentence(problem)}") from None
    if present and not overwrite and (run is None or _run_of(api, repository) != run):
        raise HubError(
            f"{repository} on the hub holds files of something else than this run ({', '.join(sorted(present)[:3])}): "
            "choose another repository, or replace them with --overwrite"
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Uploads the drafter in `folder` with its report and card; returns the address of the commit.

    Raises HubError.
    """
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=list(OWN_FILES),
            commit_message="Drafter trained with redrafter-training",
        )
    except Exception as problem:  # of the network's types, too
        raise HubError(f"{sentence(problem)}") from problem
    return str(commit.commit_url)


def _run_of(api: HfApi, repository: str) -> str | None:
    """The run that the drafter in a repository is from, by its report."""
    try:
        report = json.loads(Path(api.hf_hub_download(repository, PROVENANCE_FILE)).read_text(encoding="utf-8"))
        return report.get("run") if isinstance(report, dict) else None
    except (EntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
