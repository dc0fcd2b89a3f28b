# SPDX-License-Identifier: Apache-2.0
"""Whether a drafter fits a target: the sizes, which serving checks too, and the weights that it was trained for."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.fingerprint import COMMIT, target_fingerprint
from redrafter_vllm.checkpoint.io import check_checkpoint
from redrafter_vllm.checkpoint.places import read_provenance
from redrafter_vllm.utils.findings import Finding, Level

# The same as in `integration.frontend.build_config`, which imports vLLM: tokens that a drafter may lack.
MAX_VOCAB_PADDING = 1024
OTHER_DRAFTER = "use the drafter that was trained for this target, or train one: redrafter train"
OTHER_TARGET = "serve the target that it was trained for, or train with this one: redrafter train --init-from"
LOOK = "see what it drafts: redrafter inspect DRAFTER --target MODEL --tree PROMPT"
PARTS = {"weights": "weights", "tokenizer": "tokenizer or chat template"}


def fit(folder: Path, target: str) -> Iterator[Finding]:
    """What says that the drafter in a folder fits a target or does not.

    Reads the target's files, whose content is compared with that of the training's target.

    Args:
        folder: The drafter's.
        target: Folder or hub id.

    Raises CheckpointError where there is no drafter, OSError or ValueError where the target cannot be read.
    """
    from transformers import AutoConfig

    drafter = check_checkpoint(folder)
    sizes = AutoConfig.from_pretrained(target).get_text_config()
    found = [_hidden_size(drafter, sizes.hidden_size), _vocabulary(drafter, sizes.vocab_size)]
    yield from found
    if all(finding.level is not Level.PROBLEM for finding in found):  # else its weights do not matter
        yield trained_for(read_provenance(folder), target_fingerprint(target))


def trained_for(training: Mapping[str, Any], target: Mapping[str, str], differing: Level = Level.NOTE) -> Finding:
    """Whether a target is the one that a drafter was trained for.

    Args:
        training: The drafter's `training.json`; empty where there is none.
        target: The target's fingerprints now, by part.
        differing: The level where it is another one; serving works then, but accepts less.
    """
    known = training.get("target_content")
    if not isinstance(known, Mapping):
        return Finding(Level.NOTE, "target", "the drafter does not say which weights it was trained for", LOOK)
    parts = [part for part in PARTS if part in known and known[part] != target.get(part)]
    if not parts:
        return Finding(Level.OK, "target", "the one that the drafter was trained for")
    if any(str(value).startswith(COMMIT) for part in parts for value in (known[part], target.get(part))):
        was, now = known[parts[0]], target.get(parts[0])
        says = f"its content cannot be compared with that of the training's target ({was} there, {now} here)"
        return Finding(Level.NOTE, "target", says, LOOK)
    what = " and ".join(PARTS[part] for part in parts)
    return Finding(differing, "target", f"other {what} than the drafter was trained for", OTHER_TARGET)


def _hidden_size(drafter: DrafterConfig, target: int) -> Finding:
    if drafter.hidden_size == target:
        return Finding(Level.OK, "hidden size", f"{target:,} in both")
    says = f"the drafter's is {drafter.hidden_size:,}, the target's {target:,}: it does not fit"
    return Finding(Level.PROBLEM, "hidden size", says, OTHER_DRAFTER)


def _vocabulary(drafter: DrafterConfig, target: int) -> Finding:
    lacking = target - drafter.vocab_size
    if not 0 <= lacking <= MAX_VOCAB_PADDING:
        says = f"the drafter's has {drafter.vocab_size:,} tokens, the target's {target:,}: it does not fit"
        return Finding(Level.PROBLEM, "vocabulary", says, OTHER_DRAFTER)
    trimmed = drafter.draft_vocab_size
    drafted = "all can be drafted" if trimmed is None else f"{trimmed:,} can be drafted"
    if lacking:
        says = f"the drafter's lacks the last {lacking:,} of the target's {target:,} tokens, which are never drafted"
        return Finding(Level.NOTE, "vocabulary", says)
    return Finding(Level.OK, "vocabulary", f"{target:,} tokens in both, of which {drafted}")
