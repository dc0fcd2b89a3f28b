# SPDX-License-Identifier: Apache-2.0
"""Drafter checkpoints: strict loading, a check of the headers alone, atomic saving.

A checkpoint is a directory with `config.json` and safetensors files (one, or shards with an index). Everything that can
be wrong with one is a `CheckpointError` of its own kind, whose message is one sentence: what, where, and what to do.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redrafter_vllm.checkpoint_errors import (
    CheckpointConfigError,
    CheckpointNotFoundError,
    MissingTensorsError,
    NonFiniteTensorError,
    PickleCheckpointError,
    SurplusTensorsError,
    TargetMismatchError,
    TensorShapeError,
    UnreadableWeightsError,
)
from redrafter_vllm.checkpoint_errors import CheckpointError as CheckpointError
from redrafter_vllm.checkpoint_errors import DraftVocabularyError as DraftVocabularyError
from redrafter_vllm.draft_vocabulary import MAP, check_map, check_map_header
from redrafter_vllm.drafter import Drafter, DrafterConfig
from redrafter_vllm.spellings import CONFIG_KEYS, MODEL_TYPE, PREFIX, canonical_name, drafter_fields, is_inside_target

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth")
_WEIGHT_STEMS = ("pytorch_model", "model", "drafter")
_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class _Entry:
    """Where one tensor of Apple's layout is stored."""

    file: Path
    name: str
    shape: tuple[int, ...]


def check_checkpoint(path: str | PathLike[str]) -> DrafterConfig:
    """Checks config, tensor names, types and shapes from the files' headers, reading no tensor."""
    return _read_header(Path(path))[0]


def check_against_target(config: DrafterConfig, *, hidden_size: int, vocab_size: int, allowed_padding: int = 0) -> None:
    """Raises TargetMismatchError unless the drafter belongs to a target of these sizes.

    Targets get rows added to their vocabulary (for alignment, or for special tokens): a drafter may lack up to
    `allowed_padding` of the last ones, which it never drafts.
    """
    for what, own, target, missing in (
        ("hidden size", config.hidden_size, hidden_size, 0),
        ("vocabulary size", config.vocab_size, vocab_size, allowed_padding),
    ):
        if not target - missing <= own <= target:
            raise TargetMismatchError(
                f"The drafter has {what} {own} but the target has {target}; use the drafter that was trained for "
                "this target, or train one."
            )


def load_checkpoint(
    path: str | PathLike[str], *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[DrafterConfig, dict[str, Tensor]]:
    """The config and the tensors, under Apple's names, on `device`, in `dtype` or else as stored."""
    config, entries = _read_header(Path(path))
    tensors: dict[str, Tensor] = {}
    for file in sorted({entry.file for entry in entries.values()}):
        with safe_open(file, framework="pt") as weights:
            for name, entry in entries.items():
                if entry.file == file:
                    where = f"{entry.name} in {file}"
                    tensors[name] = _converted(name, weights.get_tensor(entry.name), where, config, dtype, device)
    return config, tensors


def save_checkpoint(path: str | PathLike[str], config: DrafterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes Apple's layout into directory `path`; a reader sees the old file or the new one, never half of one."""
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    dtype = str(next(tensor.dtype for name, tensor in stored.items() if name != MAP)).removeprefix("torch.")
    fields = {name: value for name, value in asdict(config).items() if value is not None}
    described = {"architectures": ["Drafter"], "model_type": MODEL_TYPE, "dtype": dtype} | fields
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
        save_file(stored, Path(scratch, WEIGHTS_FILE), metadata={"format": "pt"})
        Path(scratch, CONFIG_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            os.replace(Path(scratch, name), directory / name)
    (directory / INDEX_FILE).unlink(missing_ok=True)  # it would send readers to older shards


def read_config(directory: Path) -> tuple[DrafterConfig, bool]:
    """The drafter's config, and whether its tensors stand behind `drafter.` among a target's."""
    if not directory.is_dir():
        raise CheckpointNotFoundError(
            f"There is no drafter checkpoint at {directory}: give a directory that holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}."
        )
    file = directory / CONFIG_FILE
    raw = _read_json(file)
    fields = drafter_fields(raw)
    if fields is None:
        raise CheckpointConfigError(
            f"{file} describes no drafter: its model_type is {raw.get('model_type')!r}, expected {MODEL_TYPE!r} or a "
            "target's config with a redrafter block; give the drafter's own directory, or the word 'redrafter' to have "
            "it looked up."
        )
    missing = [key for key in CONFIG_KEYS if key not in fields]
    if missing:
        raise CheckpointConfigError(f"{file} lacks {', '.join(missing)}: add what the drafter was trained with.")
    try:
        return DrafterConfig(**fields), is_inside_target(raw)
    except ValueError as error:
        raise CheckpointConfigError(f"{file} cannot be used: {error}.") from None


def canonical_entries(where: str, names: Iterable[str], config: DrafterConfig, inside_target: bool) -> dict[str, str]:
    """Maps Apple's tensor names to the stored ones; a target's own tensors are left out."""
    entries: dict[str, str] = {}
    for stored in sorted(names):
        if inside_target and not stored.startswith(PREFIX):
            continue
        name = canonical_name(stored, config.num_draft_layers)
        if name in entries:
            raise SurplusTensorsError(
                f"{where} holds {name} twice, as {entries[name]} and as {stored}: remove the one that is not meant."
            )
        entries[name] = stored
    return entries


def check_shapes(where: str, config: DrafterConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises unless `shapes` holds exactly the tensors, in exactly the shapes, that `config` implies.

    The draft vocabulary's map is left to `check_map_header`.
    """
    expected = _expected_shapes(config)
    shapes = {name: shape for name, shape in shapes.items() if name != MAP}
    if missing := sorted(expected.keys() - shapes.keys()):
        raise MissingTensorsError(
            f"{where} lacks {_listed(missing)}: check num_draft_layers, exit_dim and rnn in {CONFIG_FILE}, or export "
            "the drafter again."
        )
    if surplus := sorted(shapes.keys() - expected.keys()):
        raise SurplusTensorsError(
            f"{where} holds {_listed(surplus)}, for which its config has no place: check num_draft_layers, exit_dim "
            f"and rnn in {CONFIG_FILE}."
        )
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise TensorShapeError(
                f"{name} in {where} has shape {list(shapes[name])} but its config implies {list(shape)}: "
                f"correct {CONFIG_FILE} or export the drafter again."
            )


def check_finite(where: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteTensorError(
            f"{where} holds NaN or infinite values as {tensor.dtype}: export the drafter from a sound training state, "
            "or load it in a wider type."
        )


def pickle_files(directory: Path) -> list[Path]:
    """The directory's pickles, only those named like weights where there are any."""
    files = sorted(file for file in directory.iterdir() if file.suffix in PICKLE_SUFFIXES)
    return [file for file in files if file.name.startswith(_WEIGHT_STEMS)] or files


def _read_header(directory: Path) -> tuple[DrafterConfig, dict[str, _Entry]]:
    config, inside_target = read_config(directory)
    found: dict[str, _Entry] = {}
    dtypes: dict[str, str] = {}
    for file in _weight_files(directory):
        try:
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118  (not a mapping)
                    part = weights.get_slice(name)
                    found[name] = _Entry(file, name, tuple(part.get_shape()))
                    dtypes[name] = part.get_dtype()
        except (SafetensorError, OSError) as error:
            raise UnreadableWeightsError(f"{file} cannot be read as safetensors ({error}): copy it again.") from None
    stored = canonical_entries(str(directory), found, config, inside_target)
    entries = {name: found[stored_name] for name, stored_name in stored.items()}
    check_shapes(str(directory), config, {name: entry.shape for name, entry in entries.items()})
    stored_map = None if MAP not in entries else (entries[MAP].name, entries[MAP].shape, dtypes[entries[MAP].name])
    check_map_header(str(directory), config.draft_vocab_size, stored_map)
    for name, entry in entries.items():
        if name != MAP and dtypes[entry.name] not in _FLOAT_DTYPES:
            raise UnreadableWeightsError(
                f"{entry.name} in {entry.file} is stored as {dtypes[entry.name]}, expected one of "
                f"{', '.join(_FLOAT_DTYPES)}: export the drafter without quantisation."
            )
    return config, entries


def _weight_files(directory: Path) -> list[Path]:
    if (directory / INDEX_FILE).is_file():
        return _indexed_files(directory / INDEX_FILE)
    if (directory / WEIGHTS_FILE).is_file():
        return [directory / WEIGHTS_FILE]
    others = sorted(directory.glob("*.safetensors"))
    if len(others) == 1:
        return others
    if len(others) > 1:
        raise CheckpointNotFoundError(
            f"{directory} holds {len(others)} safetensors files and no {INDEX_FILE} that says which belong together: "
            "add the index, or keep one file."
        )
    if pickles := [file.name for file in pickle_files(directory)]:
        raise PickleCheckpointError(
            f"{directory} holds its weights as a pickle ({_listed(pickles)}), which may run code when read: if you "
            f"trust it, convert it with `python -m redrafter_vllm.convert {directory} DST --allow-pickle`."
        )
    raise CheckpointNotFoundError(f"{directory} holds no {WEIGHTS_FILE}: export or copy the drafter's weights there.")


def _indexed_files(index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UnreadableWeightsError(f"{index} has no weight_map: copy it again.")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    for file in files:
        if not file.is_file():
            raise CheckpointNotFoundError(f"{index} names {file.name}, which is absent: copy it beside the index.")
    return files


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise CheckpointNotFoundError(f"{file.parent} has no {file.name}: give a complete checkpoint directory.")
    try:
        parsed = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointConfigError(f"{file} is not readable JSON ({error}): copy it again.") from None
    if not isinstance(parsed, dict):
        raise CheckpointConfigError(f"{file} holds no JSON object: copy it again.")
    return parsed


def _expected_shapes(config: DrafterConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in Drafter(config).state_dict().items() if name != MAP}


def _converted(
    name: str,
    tensor: Tensor,
    where: str,
    config: DrafterConfig,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> Tensor:
    if name == MAP:
        check_map(where, tensor, config.vocab_size)
        return tensor.to(device=device, dtype=torch.int64)
    converted = tensor.to(device=device, dtype=dtype)
    check_finite(where, converted)
    return converted


def _listed(names: list[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
