# SPDX-License-Identifier: Apache-2.0
"""What the data of a training depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redrafter_training.config.job import Job
from redrafter_training.config.recipe import DistillConfig
from redrafter_training.target.properties import read_facts


@dataclass(frozen=True)
class FeedSettings:
    """The settings of a training that its data depends on; see `redrafter_training.config.job.Job`."""

    data: str
    chat_template: str | None
    config: DistillConfig
    folder: Path  # the run's, for the target's own responses
    held_out_windows: int
    examples: Path | None = None  # file of prepared conversations; it need not exist
    hidden_cache: bool = False  # whether the target's hidden states are read from disk
    keep_duplicates: bool = False
    keep_evaluation: bool = False  # texts with prompts that drafters are measured on
    target: Mapping[str, str] = field(default_factory=dict)  # the target's fingerprint
    computes: tuple[str, ...] = ()  # the target's dtype and quantisation
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    data_config: str | None = None
    data_split: str | None = None
    held_out_split: str | None = None
    vocab_size: int | None = None  # rows of the target's embedding, if known

    @property
    def written_by(self) -> tuple[Mapping[str, str], tuple[str, ...]]:
        """What the target's responses depend on, beside the prompts and the recipe."""
        return self.target, self.computes

    @classmethod
    def of(
        cls,
        job: Job,
        config: DistillConfig,
        *,
        target: Mapping[str, str] | None = None,
        examples: Path | None = None,
        computes: tuple[str, ...] = (),
    ) -> "FeedSettings":
        """The settings of a job; without `target`, its fingerprint, responses of any target are accepted."""
        return cls(
            job.data,
            job.chat_template,
            config,
            job.run_folder,
            job.evaluate_windows,
            examples,
            hidden_cache=job.hidden_cache is not None,
            chat_template_kwargs=job.chat_template_kwargs,
            data_config=job.data_config,
            data_split=job.data_split,
            held_out_split=job.held_out_split,
            vocab_size=read_facts(job.target, trust_remote_code=job.trust_remote_code).vocab_size,
            keep_duplicates=job.duplicates == "keep",
            keep_evaluation=job.evaluation_prompts == "keep",
            target=target or {},
            computes=computes,
        )
