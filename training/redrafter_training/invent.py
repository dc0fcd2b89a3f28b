# SPDX-License-Identifier: Apache-2.0
"""`python -m redrafter_training.invent --target MODEL --count N --out prompts.jsonl`: let a chat model write prompts.

The file is then `--data` for `redrafter_training.respond`. A second start with the same keys continues the file.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redrafter_training.cli import parse_keys
from redrafter_training.responses.config import PromptJob
from redrafter_training.utils.command import run_command

if TYPE_CHECKING:
    from redrafter_training.responses.invention import Invented

DESCRIPTION = "Let the target, a chat model, write the prompts that its drafter is to be trained on responses to."


def invent(job: PromptJob) -> "Invented":
    """Samples prompts until the file holds enough, and stores them after every batch.

    Raises:
        DataError: the target cannot be used, or the file holds something else or prompts sampled with other keys.
    """
    from tqdm import tqdm

    from redrafter_training.data.chat_templates import resolve_chat_template
    from redrafter_training.responses.invention import PromptInventor
    from redrafter_training.responses.vllm_engine import load_tokenizer, make_engine

    tokenizer = load_tokenizer(job, job.max_prompt + 1, "--max-prompt")
    settings = _settings(job)
    found = _load(job.out, settings)
    if len(found.prompts) >= job.count:
        return found
    template = resolve_chat_template(tokenizer, job.chat_template, job.chat_template_kwargs)
    opening = tokenizer(template.user_turn()[0], add_special_tokens=template.adds_special_tokens)["input_ids"]
    tokens = (job.count - len(found.prompts)) * job.max_prompt // 2
    engine = make_engine(job, tokenizer, window=len(opening) + job.max_prompt, tokens=tokens, progress=True)
    inventor = PromptInventor(
        template, tokenizer, engine, temperature=job.temperature, max_prompt=job.max_prompt, seed=job.seed
    )
    with tqdm(total=job.count, initial=len(found.prompts), desc="prompts", unit="prompt") as bar:

        def stored(state: "Invented") -> None:
            _store(job.out, settings, state)
            bar.update(len(state.prompts) - bar.n)

        inventor(found, job.count, stored)
    return found


def _settings(job: PromptJob) -> dict[str, Any]:
    from redrafter_training.data.chat_templates import template_fingerprint
    from redrafter_training.utils.fingerprint import target_fingerprint

    return job.identity() | {
        "target_content": target_fingerprint(job.target),
        "chat_template": template_fingerprint(job.chat_template),
    }


def facts_file(out: Path) -> Path:
    """The file beside the prompts: with which keys they were sampled, and what became of all that were."""
    return out.with_name(out.name + ".json")


def _load(out: Path, settings: dict[str, Any]) -> "Invented":
    """The prompts of an earlier start."""
    from redrafter_training.data.report import DataError
    from redrafter_training.responses.invention import Invented, Prompt, Rejected
    from redrafter_training.utils.fingerprint import differences
    from redrafter_vllm.utils import strict_json

    facts = facts_file(out)
    if not out.exists() and not facts.exists():
        return Invented()
    try:
        stored = strict_json.loads(facts.read_text("utf-8"))
        lines = [strict_json.loads(line) for line in out.read_text("utf-8").splitlines()]
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


def _store(out: Path, settings: dict[str, Any], found: "Invented") -> None:
    from redrafter_training.utils.provenance import provenance
    from redrafter_vllm.utils import strict_json
    from redrafter_vllm.utils.atomic import write_text

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


def main(argv: Sequence[str] | None = None) -> int:
    job = parse_keys(PromptJob, "redrafter_training.invent", DESCRIPTION, argv)
    return run_command(lambda _: _main(job), lambda: "interrupted: the same command continues behind the last batch")


def _main(job: PromptJob) -> int:
    found = invent(job)
    print(found)
    if len(found.prompts) < job.count:
        print(f"{len(found.prompts)} of {job.count} prompts: the target invents little that is new", file=sys.stderr)
    respond = f"python -m redrafter_training.respond --target {job.target} --data {job.out} --out DIR"
    print(f"generate responses with: {respond}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
