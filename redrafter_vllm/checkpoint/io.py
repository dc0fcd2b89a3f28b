# SPDX-License-Identifier: Apache-2.0
"""Drafter checkpoints: strict loading, a check of the headers alone, atomic saving.

A checkpoint is a directory with `config.json` and safetensors files (one, or shards with an index). Every defect raises
a `CheckpointError` of its kind, whose message says in one sentence what is wrong, where, and what to do.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import lru_cache
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.checkpoint.errors import (
    CheckpointConfigError,
    CheckpointError,
    CheckpointNotFoundError,
    MissingTensorsError,
    NonFiniteTensorError,
    SurplusTensorsError,
    TargetMismatchError,
    TensorShapeError,
    UnreadableWeightsError,
)
from redrafter_vllm.checkpoint.files import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    StoredTensor,
    is_directory,
    read_json,
    stored_tensors,
    unreadable,
    weight_files,
)
from redrafter_vllm.checkpoint.names import (
    CONFIG_KEYS,
    MODEL_TYPE,
    PREFIX,
    canonical_name,
    drafter_fields,
    is_inside_target,
    unknown_keys,
)
from redrafter_vllm.checkpoint.places import replaced_files
from redrafter_vllm.checkpoint.vocab_mapping import MAP, check_map, check_map_header
from redrafter_vllm.utils.messages import listed, one_line, shown

logger = logging.getLogger(__name__)

_FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


def check_checkpoint(path: str | PathLike[str]) -> DrafterConfig:
    """Checks config, tensor names, types and shapes from the files' headers, reading no tensor."""
    return _read_header(Path(path))[0]


def check_against_target(config: DrafterConfig, *, hidden_size: int, vocab_size: int, allowed_padding: int = 0) -> None:
    """Raises TargetMismatchError unless the drafter belongs to a target of these sizes.

    Rows may have been added to the target's vocabulary, for alignment or for special tokens: a drafter may lack up to
    `allowed_padding` of the last ones, which it then never drafts.
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
        try:
            with safe_open(file, framework="pt") as weights:
                for name, entry in entries.items():
                    if entry.file == file:
                        where = f"{entry.name} in {file}"
                        tensors[name] = _converted(name, weights.get_tensor(entry.name), where, config, dtype, device)
        except (SafetensorError, OSError) as error:  # replaced or cut since its header was read
            raise unreadable(file, error) from None
    return config, tensors


def save_checkpoint(path: str | PathLike[str], config: DrafterConfig, tensors: Mapping[str, Tensor]) -> None:
    """Writes Apple's layout into directory `path`, each file atomically.

    Raises PlaceError where `path` holds weights or a config of something else than a drafter, a target for instance.
    """
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    dtype = str(next(tensor.dtype for name, tensor in stored.items() if name != MAP)).removeprefix("torch.")
    fields = {name: value for name, value in asdict(config).items() if value is not None}
    described = {"architectures": ["Drafter"], "model_type": MODEL_TYPE, "dtype": dtype} | fields
    with replaced_files(Path(path)) as made:
        save_file(stored, made / WEIGHTS_FILE, metadata={"format": "pt"})
        (made / CONFIG_FILE).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")


def read_config(directory: Path) -> tuple[DrafterConfig, bool]:
    """The drafter's config, and whether its tensors have the prefix `drafter.` among a target's."""
    if not is_directory(directory):
        raise CheckpointNotFoundError(
            f"There is no drafter checkpoint at {directory}: give a directory that holds {CONFIG_FILE} and "
            f"{WEIGHTS_FILE}."
        )
    file = directory / CONFIG_FILE
    raw = read_json(directory, CONFIG_FILE)
    try:
        fields = drafter_fields(raw)
        if fields is None:
            raise CheckpointConfigError(
                f"{file} describes no drafter: its model_type is {shown(raw.get('model_type'))}, expected "
                f"{MODEL_TYPE!r} or a target's config with a redrafter block; give the drafter's own directory, or the "
                "word 'redrafter' to have it looked up."
            )
        if missing := [key for key in CONFIG_KEYS if key not in fields]:
            raise CheckpointConfigError(f"{file} lacks {', '.join(missing)}: add what the drafter was trained with.")
        config = DrafterConfig(**fields)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointConfigError(f"{file} cannot be used: {error}.") from None
    if unknown := unknown_keys(raw):
        _warn_once(f"{file} holds unknown keys, which are ignored: {listed(unknown)}.")
    return config, is_inside_target(raw)


def canonical_entries(where: str, names: Iterable[str], config: DrafterConfig, inside_target: bool) -> dict[str, str]:
    """Maps Apple's tensor names to the stored ones; a target's own tensors are left out."""
    entries: dict[str, str] = {}
    for stored in sorted(names):
        if inside_target and not stored.startswith(PREFIX):
            continue
        name = canonical_name(stored, config.num_draft_layers)
        if name in entries:
            raise SurplusTensorsError(
                f"{where} holds {name} twice, as {entries[name]} and as {stored}: remove one of them."
            )
        entries[name] = stored
    return entries


def check_shapes(where: str, config: DrafterConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises unless `shapes` holds exactly the tensors, in exactly the shapes, that `config` implies.

    The draft vocabulary's map is left to `check_map_header`.
    """
    shapes = {name: shape for name, shape in shapes.items() if name != MAP}
    expected = tensor_shapes(config)
    if missing := sorted(expected.keys() - shapes.keys()):
        raise MissingTensorsError(
            f"{where} lacks {listed(missing)}: check num_draft_layers, exit_dim and rnn in {CONFIG_FILE}, or export "
            "the drafter again."
        )
    if surplus := sorted(shapes.keys() - expected.keys()):
        raise SurplusTensorsError(
            f"{where} holds {listed(surplus)}, which its config does not imply: check num_draft_layers, exit_dim "
            f"and rnn in {CONFIG_FILE}."
        )
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise TensorShapeError(
                f"{name} in {where} has shape {shown(list(shapes[name]))} but its config implies {list(shape)}: "
                f"correct {CONFIG_FILE} or export the drafter again."
            )


def check_finite(where: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise NonFiniteTensorError(
            f"{where} holds NaN or infinite values as {tensor.dtype}: export the drafter from a training state without "
            "them, or load it in a wider type."
        )


def _read_header(directory: Path) -> tuple[DrafterConfig, dict[str, StoredTensor]]:
    """The config, and the header entries of the tensors by Apple's names; no tensor is read."""
    config, inside_target = read_config(directory)
    found: dict[str, StoredTensor] = {}
    for file in weight_files(directory):
        for tensor in stored_tensors(file):
            if inside_target and not tensor.name.startswith(PREFIX):
                continue
            if tensor.name in found:
                raise SurplusTensorsError(
                    f"{directory} holds {listed([tensor.name])} twice, in {found[tensor.name].file.name} and in "
                    f"{file.name}: remove one of them."
                )
            found[tensor.name] = tensor
    stored = canonical_entries(str(directory), found, config, inside_target)
    entries = {name: found[stored_name] for name, stored_name in stored.items()}
    check_shapes(str(directory), config, {name: entry.shape for name, entry in entries.items()})
    own_map = entries.get(MAP)
    stored_map = None if own_map is None else (own_map.name, own_map.shape, own_map.dtype)
    check_map_header(str(directory), config.draft_vocab_size, stored_map)
    for name, entry in entries.items():
        if name != MAP and entry.dtype not in _FLOAT_DTYPES:
            raise UnreadableWeightsError(
                f"{entry.name} in {entry.file} is stored as {entry.dtype}, expected one of "
                f"{', '.join(_FLOAT_DTYPES)}: export the drafter without quantisation."
            )
    return config, entries


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


@lru_cache(maxsize=64)  # one load reads a config several times
def _warn_once(message: str) -> None:
    logger.warning("%s", one_line(message))
