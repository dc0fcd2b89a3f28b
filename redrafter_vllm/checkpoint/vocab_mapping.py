# SPDX-License-Identifier: Apache-2.0
"""The part of the target's vocabulary that a trimmed drafter proposes from, and how checkpoints store it.

A draft id is a row of the drafter's output layer. Draft ids are in ascending order of their target ids, so that ties
break alike in both vocabularies. The map is stored as in EAGLE-3 checkpoints: a tensor `d2t` of offsets, target id =
draft id + d2t[draft id].
"""

import torch
from torch import Tensor

from redrafter_vllm.checkpoint.errors import DraftVocabularyError

MAP = "d2t"
_INTEGERS = {torch.int32: "I32", torch.int64: "I64"}  # as safetensors names them


def to_offsets(target_ids: Tensor) -> Tensor:
    """The `d2t` [D] of ascending target ids [D]."""
    return target_ids - torch.arange(len(target_ids), device=target_ids.device)


def to_target_ids(offsets: Tensor) -> Tensor:
    """The target ids [D] of a `d2t` [D]."""
    return offsets + torch.arange(len(offsets), device=offsets.device)


def check_target_ids(target_ids: Tensor, vocab_size: int) -> None:
    """Raises ValueError unless `target_ids` [D] are strictly increasing ids of a vocabulary of `vocab_size`."""
    steps = target_ids.diff()
    if bool((steps < 1).any()):
        place = int((steps < 1).int().argmax())
        raise ValueError(
            f"target ids must be strictly increasing, but draft ids {place} and {place + 1} map to "
            f"{int(target_ids[place])} and {int(target_ids[place + 1])}"
        )
    outside = (target_ids < 0) | (target_ids >= vocab_size)
    if bool(outside.any()):
        place = int(outside.int().argmax())
        raise ValueError(
            f"draft id {place} maps to target id {int(target_ids[place])}, outside a vocabulary of {vocab_size}"
        )


def map_header(offsets: Tensor | None) -> tuple[str, tuple[int, ...], str] | None:
    """The header of a map in memory, for `check_map_header`."""
    if offsets is None:
        return None
    return MAP, tuple(offsets.shape), _INTEGERS.get(offsets.dtype, str(offsets.dtype))


def check_map_header(where: str, draft_vocab_size: int | None, stored: tuple[str, tuple[int, ...], str] | None) -> None:
    """Checks presence, type and length of the map, `stored`: its name, shape and safetensors type.

    Raises DraftVocabularyError.
    """
    if draft_vocab_size is None:
        if stored is not None:
            raise DraftVocabularyError(
                f"{where} holds the draft vocabulary's map {stored[0]}, but its config has no draft_vocab_size: add "
                "the size that the drafter was trained with."
            )
        return
    if stored is None:
        raise DraftVocabularyError(
            f"{where} has draft_vocab_size {draft_vocab_size} but no tensor {MAP} that maps draft to target ids: "
            "export the drafter again."
        )
    name, shape, dtype = stored
    if dtype not in _INTEGERS.values():
        raise DraftVocabularyError(
            f"{name} in {where} is stored as {dtype}, expected one of {', '.join(_INTEGERS.values())}: export the "
            "drafter again."
        )
    if shape != (draft_vocab_size,):
        raise DraftVocabularyError(
            f"{name} in {where} has shape {list(shape)} but draft_vocab_size is {draft_vocab_size}: correct the config "
            "or export the drafter again."
        )


def check_map(where: str, offsets: Tensor, vocab_size: int) -> None:
    """Checks the content of a `d2t` [D] read from `where`. Raises DraftVocabularyError."""
    try:
        check_target_ids(to_target_ids(offsets.long()), vocab_size)
    except ValueError as error:
        raise DraftVocabularyError(f"{where} is no draft vocabulary ({error}): export the drafter again.") from None
