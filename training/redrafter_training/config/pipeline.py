# SPDX-License-Identifier: Apache-2.0
"""A recipe from the target to the measured drafter: the keys of each command, without what follows from the others."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from redrafter_training.config.job import expand_places

PROMPTS, RESPONSES, DRAFTER, EVALUATION = "prompts.jsonl", "responses", "drafter", "evaluation.jsonl"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Options of `redrafter_training.pipeline`.

    Attributes:
        out: folder for all results: prompts.jsonl, responses/, drafter/, evaluation.jsonl.
        target: folder or hub name of the target (default: what fetch brings).
        fetch: smollm2 fetches SmolLM2-135M-Instruct as the target, unless target is given.
        invent: keys of `redrafter invent`, or nothing where respond or train has data.
        respond: keys of `redrafter respond`, or nothing where train has data.
        train: keys of `redrafter train`; a relative hidden_cache is a folder in out.
        evaluate: keys of `redrafter evaluate`; its results go into the drafter's card, too.
        dry_run: print the commands and stop.
    """

    out: Path
    target: str | None = None
    fetch: Literal["smollm2"] | None = None
    invent: dict[str, Any] | None = None
    respond: dict[str, Any] | None = None
    train: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        expand_places(self, "out")
        if self.target is None and self.fetch is None:
            raise ValueError("there is no target: give one, or the key fetch")
        if self.invent is not None and self.respond is None:
            raise ValueError("invent needs respond: prompts alone cannot be trained on")
        for name, follows in self.set_here.items():
            for key in follows & (getattr(self, name) or {}).keys():
                raise ValueError(f"{name}.{key} follows from the other keys: leave it out")

    @property
    def set_here(self) -> dict[str, set[str]]:
        """The keys of each section that the pipeline sets."""
        return {
            "invent": {"target", "out"},
            "respond": {"target", "out"} | ({"data"} if self.invent is not None else set()),
            "train": {"target", "out", "dry_run"} | ({"data"} if self.respond is not None else set()),
            "evaluate": {"target", "drafter", "card"},
        }
