# SPDX-License-Identifier: Apache-2.0
"""Where the drafter of a target is found."""

import os
from pathlib import Path

from redrafter_vllm.places import user_path

WORD = "redrafter"
CHECKPOINT_VARIABLE = "REDRAFTER_CHECKPOINT"
HOME_VARIABLE = "REDRAFTER_HOME"


class DrafterNotFoundError(ValueError):
    """No drafter checkpoint stands where one was looked for."""


def registry_dir(target: str) -> Path:
    """Directory of a target's drafter in the registry: `~/.cache/redrafter/<org>--<name>/`.

    `REDRAFTER_HOME` moves the registry. A target on disk is registered under its directory's name.
    """
    home = user_path(os.environ.get(HOME_VARIABLE) or "~/.cache/redrafter")
    path = Path(target)
    name = path.resolve().name if path.is_dir() else target.strip("/").replace("/", "--")
    return home / name


def resolve_drafter(model: str | None, target: str) -> Path:
    """Local directory of the drafter that `model` names for `target`.

    Args:
        model: The word `redrafter` or None (look it up), a directory, or a hub id.
        target: The target's directory or hub id.

    Raises:
        DrafterNotFoundError: With the places looked at and what to do.
    """
    if model is None or model == WORD:
        return _look_up(target)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise DrafterNotFoundError(f"The drafter checkpoint {model!r} is not a directory; check the path.")
    return _download(model)


def _look_up(target: str) -> Path:
    looked_at: list[str] = []
    explicit = os.environ.get(CHECKPOINT_VARIABLE)
    if explicit:
        if _holds_drafter(Path(explicit).expanduser()):
            return Path(explicit).expanduser()
        raise DrafterNotFoundError(
            f"{CHECKPOINT_VARIABLE}={explicit!r} does not hold a drafter (no config.json there); correct or unset it."
        )
    looked_at.append(f"${CHECKPOINT_VARIABLE} (not set)")
    for place in (Path(target) / WORD, registry_dir(target)):
        if _holds_drafter(place):
            return place
        looked_at.append(str(place))
    raise DrafterNotFoundError(
        f"No ReDrafter checkpoint for {target!r}; looked at {', '.join(looked_at)}. Train one with "
        f"`python -m training --target {target} --data DATA`, or pass its directory or hub id instead of the word "
        "'redrafter'."
    )


def _holds_drafter(path: Path) -> bool:
    return (path / "config.json").is_file()


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise DrafterNotFoundError(
            f"The drafter {repo_id!r} is neither a directory nor available from the hub "
            f"({type(error).__name__}: {str(error).splitlines()[0]})."
        ) from error
