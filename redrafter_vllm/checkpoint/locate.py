# SPDX-License-Identifier: Apache-2.0
"""Finds the drafter of a target."""

import json
import os
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.files import CONFIG_FILE
from redrafter_vllm.checkpoint.names import drafter_fields
from redrafter_vllm.utils.messages import is_dangling, is_near, reason, shown, why_no_directory
from redrafter_vllm.utils.paths import user_path

WORD = "redrafter"
CHECKPOINT_VARIABLE = "REDRAFTER_CHECKPOINT"
HOME_VARIABLE = "REDRAFTER_HOME"


class DrafterNotFoundError(ValueError):
    """There is no drafter checkpoint where one was looked for."""


def home() -> Path:
    """The folder of what is kept between runs, `~/.cache/redrafter` unless `REDRAFTER_HOME` names another."""
    return user_path(os.environ.get(HOME_VARIABLE) or "~/.cache/redrafter")


def registry_dir(target: str) -> Path:
    """Directory of a target's drafter in the registry: `~/.cache/redrafter/<org>--<name>/`.

    `REDRAFTER_HOME` moves the registry. A target on disk is registered under its directory's name.
    """
    path = Path(target)
    name = path.resolve().name if path.is_dir() else target.strip("/").replace("/", "--")
    return home() / name


def is_path(model: str) -> bool:
    """Whether a name cannot be a hub id and is therefore a path, even if it does not exist."""
    return model.startswith((".", "~", "/")) or Path(model).is_absolute() or Path(model).is_symlink()


def resolve_drafter(model: str | os.PathLike[str] | None, target: str) -> Path:
    """Local directory of the drafter that `model` names for `target`.

    Args:
        model: The word `redrafter` or None (look it up), a directory, or a hub id.
        target: The target's directory or hub id.

    Raises:
        DrafterNotFoundError: With the places looked at and what to do.
    """
    if model is None or model == WORD:
        return _look_up(target)
    if not isinstance(model, str | os.PathLike) or not str(model).strip():
        raise DrafterNotFoundError(
            f"The drafter's model must be the word {WORD!r}, a directory or a hub id, not {shown(model)}."
        )
    name = os.fspath(model)
    try:
        path = Path(name).expanduser()
        if path.is_dir():
            return path
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user
        raise DrafterNotFoundError(f"The drafter checkpoint {shown(name)} is no path: {reason(error)}.") from None
    if is_path(name) or name.count("/") != 1 or path.exists():
        meant = f" (did you mean the word {WORD!r}?)" if is_near(name, WORD) else ""
        raise DrafterNotFoundError(
            f"The drafter checkpoint {shown(name)} {why_no_directory(path)}{meant}; check the path."
        )
    if name == target:
        raise DrafterNotFoundError(
            f"{name!r} is the target, not its drafter; give the drafter's directory or hub id, or the word {WORD!r}."
        )
    return _download(name)


def _look_up(target: str) -> Path:
    looked_at: list[str] = []
    explicit = os.environ.get(CHECKPOINT_VARIABLE)
    if explicit:
        return _explicit(explicit)
    looked_at.append(f"${CHECKPOINT_VARIABLE} (not set)")
    for place in (Path(target) / WORD, registry_dir(target)):
        if _holds_drafter(place):
            return place
        for link in filter(is_dangling, (place, place.parent)):
            raise DrafterNotFoundError(f"{link} {why_no_directory(link)}; correct or remove the link.")
        looked_at.append(f"{place} (holds no {CONFIG_FILE})" if place.is_dir() else str(place))
    raise DrafterNotFoundError(
        f"No ReDrafter checkpoint for {target!r}; looked at {', '.join(looked_at)}. Train one with "
        f"`redrafter train --target {target} --data DATA`, or pass its directory or hub id instead of the "
        "word 'redrafter'."
    )


def _explicit(given: str) -> Path:
    try:
        path = Path(given).expanduser()
        if _holds_drafter(path):
            return path
        why = f"no {CONFIG_FILE} there" if path.is_dir() else f"it {why_no_directory(path)}"
    except (OSError, RuntimeError, ValueError) as error:
        why = reason(error)
    raise DrafterNotFoundError(
        f"{CHECKPOINT_VARIABLE}={shown(given)} does not hold a drafter ({why}); correct or unset it."
    )


def _holds_drafter(path: Path) -> bool:
    return (path / CONFIG_FILE).is_file()


def _download(repo_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # A target's weights, given by mistake, would be many gigabytes.
        config_file = Path(snapshot_download(repo_id, allow_patterns=[CONFIG_FILE]), CONFIG_FILE)
        config = json.loads(config_file.read_text("utf-8"))
        if not _describes_drafter(config):
            raise DrafterNotFoundError(
                f"{repo_id!r} on the hub is no drafter: its {CONFIG_FILE} describes none; give the drafter's hub id "
                f"or directory, or the word {WORD!r}."
            )
        return Path(snapshot_download(repo_id, allow_patterns=["*.json", "*.safetensors"]))
    except DrafterNotFoundError:
        raise
    except Exception as error:
        raise DrafterNotFoundError(
            f"The drafter {repo_id!r} is neither a directory nor available from the hub "
            f"({type(error).__name__}: {reason(error)})."
        ) from error


def _describes_drafter(config: Any) -> bool:
    return isinstance(config, dict) and drafter_fields(config) is not None
