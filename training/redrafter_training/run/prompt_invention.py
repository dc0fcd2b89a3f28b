# SPDX-License-Identifier: Apache-2.0
"""Prompts invented by the target, from the engine to the stored file."""

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from redrafter_training.data.chat_templates import resolve_chat_template, template_fingerprint
from redrafter_training.data.report import DataError
from redrafter_training.responses.config import PromptJob
from redrafter_training.responses.invention import Beginnings, Invented, Prompt, PromptInventor, Rejected
from redrafter_training.responses.openings import load_openings
from redrafter_training.responses.vllm_engine import load_tokenizer, make_engine
from redrafter_training.utils.differences import differences
from redrafter_training.utils.folder_lock import locked_file
from redrafter_training.utils.provenance import provenance
from redrafter_vllm.checkpoint.fingerprint import target_fingerprint
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import write_text


def invent(job: PromptJob) -> Invented:
    """Samples prompts until the file holds enough, and stores them after every batch.

    Raises:
        DataError: the target cannot be used, or the file holds something else or prompts sampled with other keys.
        FolderInUseError: another command is writing to the file.
    """
    tokenizer = load_tokenizer(job, job.max_prompt + 1, "--max-prompt")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with locked_file(job.out, "choose another --out"):
        return _invent(job, tokenizer, _settings(job))


def _invent(job: PromptJob, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]) -> Invented:
    found = _load(job.out, settings)
    if len(found.prompts) >= job.count:
        return found
    template = resolve_chat_template(tokenizer, job.chat_template, job.chat_template_kwargs)
    beginnings = Beginnings(template, tokenizer, load_openings(job.openings, job.opening_share))
    tokens = (job.count - len(found.prompts)) * job.max_prompt // 2
    window = beginnings.longest + job.max_prompt
    engine = make_engine(job, tokenizer, window=window, tokens=tokens, progress=True)
    inventor = PromptInventor(
        beginnings, tokenizer, engine, temperature=job.temperature, max_prompt=job.max_prompt, seed=job.seed
    )
    with tqdm(total=job.count, initial=len(found.prompts), desc="prompts", unit="prompt") as bar:

        def stored(state: Invented) -> None:
            _store(job.out, settings, state)
            bar.update(len(state.prompts) - bar.n)

        inventor(found, job.count, stored)
    return found


def _settings(job: PromptJob) -> dict[str, Any]:
    settings = job.identity() | {
        "target_content": target_fingerprint(job.target),
        "chat_template": template_fingerprint(job.chat_template),
    }
    if job.openings is not None:  # a file without openings goes on as before there were any
        settings["openings"] = hashlib.sha256(
            "\n".join(load_openings(job.openings, job.opening_share)).encode()
        ).hexdigest()
    return settings


def facts_file(out: Path) -> Path:
    """The file beside the prompts: with which keys they were sampled, and what became of all that were."""
    return out.with_name(out.name + ".json")


def invention_facts(out: Path) -> dict[str, Any] | None:
    """What is stored about the invented prompts in the file `out`; None for a file of anything else."""
    try:
        facts = strict_json.loads(facts_file(out).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) and {"settings", "sampled", "kept"} <= facts.keys() else None


def _load(out: Path, settings: dict[str, Any]) -> Invented:
    """The prompts of an earlier start."""
    facts = facts_file(out)
    if not out.exists() and not facts.exists():
        return Invented()
    try:
        stored = strict_json.loads(facts.read_text("utf-8"))
        lines = [strict_json.loads(line) for line in out.read_text("utf-8").split("\n") if line]
        prompts = [Prompt(line["index"], line["prompt"]) for line in lines]
        rejected = Counter({Rejected(reason): count for reason, count in stored["rejected"].items()})
        changed = differences(stored["settings"], strict_json.loads(strict_json.dumps(settings)))
        # A kill between the two writes leaves more prompts than are accounted for: their batch is sampled again.
        prompts = [prompt for prompt in prompts if prompt.index < stored["sampled"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise DataError(
            f"{out} holds something else than invented prompts ({problem!r}): choose another --out"
        ) from None
    if changed:
        raise DataError(
            f"{out} holds prompts sampled with other settings ({', '.join(changed)}): restore them, or choose another "
            "--out"
        )
    return Invented(prompts, stored["sampled"], rejected)


def _store(out: Path, settings: dict[str, Any], found: Invented) -> None:
    lines = [strict_json.dumps({"prompt": prompt.text, "index": prompt.index}) for prompt in found.prompts]
    write_text(out, "".join(f"{line}\n" for line in lines))
    facts = {
        "settings": settings,
        "sampled": found.sampled,
        "kept": len(found.prompts),
        "rejected": dict(found.rejected),
        **provenance("redrafter_training.invent"),
    }
    write_text(facts_file(out), strict_json.dumps(facts, indent=2, default=str) + "\n")
