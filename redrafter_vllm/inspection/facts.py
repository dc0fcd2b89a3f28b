# SPDX-License-Identifier: Apache-2.0
"""What is known about a drafter from its folder, without reading a tensor."""

import math
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.card import MEGABYTE, card_metadata, size_rows
from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.checkpoint.files import CONFIG_FILE, read_json
from redrafter_vllm.checkpoint.io import check_checkpoint
from redrafter_vllm.checkpoint.places import CARD_FILE, read_provenance
from redrafter_vllm.config import DraftingConfig

NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def read_facts(folder: Path, drafting: DraftingConfig) -> dict[str, str]:
    """Label and text of each fact, in the order of a table.

    Raises CheckpointError where the folder holds no drafter.
    """
    config = check_checkpoint(folder)
    dtype = str(read_json(folder, CONFIG_FILE).get("dtype", "bfloat16"))
    draws = f"{drafting.beam_width} beams of {drafting.beam_length}"
    read = bytes_per_round(config, drafting.beam_length, NUMBER_BYTES.get(dtype, 2))
    facts = {
        "drafter": str(folder),
        "hidden size": f"{config.hidden_size:,}",
        **dict(size_rows(folder)),
        "read per round": f"{read / MEGABYTE:,.1f} MB of weights for {draws}, whatever the batch",
    }
    return facts | _provenance(folder)


def bytes_per_round(config: DrafterConfig, beam_length: int, number_bytes: int) -> int:
    """Bytes of weights that a drafting round reads: all of them at every beam step, the context's half once.

    Beams and requests share a read. Without an input projection the context's half is that of the first layer.
    """
    every = sum(map(math.prod, tensor_shapes(config).values()))
    # With the bias of the first layer; an output layer has none.
    context_half = config.first_size * (config.hidden_size + (not config.starts_with_output))
    return number_bytes * (beam_length * (every - context_half) + context_half)


def _provenance(folder: Path) -> dict[str, str]:
    """From `training.json`, which this project's training writes, and the card."""
    facts: dict[str, str] = {}
    if report := read_provenance(folder):
        for label, keys in (
            ("target", ("target",)),
            ("target's weights", ("target_content", "weights")),
            ("trained by", ("command",)),
            ("trained on", ("data", "data")),
        ):
            found: Any = report
            for key in keys:
                found = found.get(key) if isinstance(found, dict) else None
            if found:
                facts[label] = str(found)
        facts |= _held_out(report.get("held_out"))
    has_card = (folder / CARD_FILE).is_file()
    if "target" not in facts and isinstance(base := card_metadata(folder).get("base_model"), str):
        facts["target"] = f"{base}, by the card"
    facts["card"] = CARD_FILE if has_card else "none (redrafter evaluate --card writes one)"
    return facts


def _held_out(measured: Any) -> dict[str, str]:
    if not isinstance(measured, dict):
        return {}
    rates = {
        shape: figures["tokens_per_step"]
        for shape, figures in measured.items()
        if isinstance(figures, dict) and isinstance(figures.get("tokens_per_step"), int | float)
    }
    text = ", ".join(f"{rate:.2f} with {shape}" for shape, rate in rates.items())
    return {"tokens per step, held-out text": text} if text else {}
