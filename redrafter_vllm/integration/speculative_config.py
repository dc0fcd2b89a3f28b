# SPDX-License-Identifier: Apache-2.0
"""The speculative configuration of method `redrafter`, which vLLM's configuration carries through its processes."""

from dataclasses import fields
from typing import Literal

from pydantic import Field
from vllm.config import SpeculativeConfig
from vllm.config.utils import config

from redrafter_vllm.config import DraftingConfig


@config
class RedrafterSpeculativeConfig(SpeculativeConfig):
    """`SpeculativeConfig` with ReDrafter's own fields. Built by `build_speculative_config`, which checks them."""

    method: Literal["redrafter"] = "redrafter"
    """Always `redrafter`."""
    checkpoint: str = ""
    """Local directory of the drafter."""
    beam_width: int = Field(default=4, ge=1)
    """Beams kept at every step."""
    beam_length: int = Field(default=4, ge=1)
    """Drafted tokens per beam, without the root."""
    logits_top_k: int | None = None
    """Renormalise the drafter's logits over this many best."""
    drafter_quantization: str | None = None
    """Keep the drafter's matrices as "fp8" or "int8"; "none" as they are."""
    project_embedding: bool = False
    """Keep the embedding's product with the drafter's W."""
    adaptive: bool | None = None
    """Let trees adapt to load and confidence."""
    prompt_lookup: bool = True
    """Let trees also have copies of the text."""

    def __post_init__(self) -> None:
        # As with n-gram drafting there is no second model for vLLM to load: the drafter holds no KV cache.
        self.draft_model_config = self.target_model_config
        self.draft_parallel_config = self.target_parallel_config

    @property
    def drafting(self) -> DraftingConfig:
        """The drafting options as one checked value."""
        return DraftingConfig(**{field.name: getattr(self, field.name) for field in fields(DraftingConfig)})

    def __repr__(self) -> str:
        return f"RedrafterSpeculativeConfig(checkpoint={self.checkpoint!r}, drafting={self.drafting})"

    def compute_hash(self) -> str:
        """Names compiled graphs that are kept: on a CPU those of our engines call other products than vLLM's do."""
        from redrafter_vllm.integration.method import wanted_products

        return f"redrafter-{wanted_products()}-{super().compute_hash()}"
