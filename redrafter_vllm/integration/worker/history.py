# SPDX-License-Identifier: Apache-2.0
"""vLLM's logits processors that use earlier tokens, where a row's earlier drafts are its ancestors in the tree."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor
from vllm.v1.worker.gpu.sample.penalties import PenaltiesState

from redrafter_vllm.drafting.buffers import DraftRows
from redrafter_vllm.integration.vllm_interface.entry import InterfaceChangedError
from redrafter_vllm.ops.path_history import BadWords, Paths, Penalties, forbid_bad_words, penalise


class PathScope:
    """Paths of the rows being processed; None where there are no drafts, and vLLM's own code runs."""

    def __init__(self) -> None:
        self.paths: Paths | None = None

    @contextmanager
    def use(self, paths: Paths) -> Iterator[None]:
        self.paths = paths
        try:
            yield
        finally:
            self.paths = None


class _Wrapper(LogitsProcessor):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        return self.inner.add_request(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        self.inner.apply_staged_writes()

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        return self.inner.apply(logits, ctx)


class PathPenalties(_Wrapper):
    """Repetition, frequency and presence penalties that count the drafts on a row's own path."""

    def __init__(self, inner: PenaltiesState, scope: PathScope) -> None:
        super().__init__(inner)
        self.scope = scope
        self.use_penalty = inner.use_penalty
        self._penalties()

    def _penalties(self) -> Penalties:
        """Read in every step: when vLLM writes such a tensor from the host, it switches to another buffer."""
        return Penalties(
            repetition=self.inner.repetition_penalty.gpu,
            frequency=self.inner.frequency_penalty.gpu,
            presence=self.inner.presence_penalty.gpu,
            prompt_mask=self.inner.prompt_bin_mask,
            output_counts=self.inner.output_bin_counts,
        )

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        if self.scope.paths is None:
            return self.inner.apply(logits, ctx)
        if np.any(self.use_penalty[ctx.idx_mapping_np]):
            penalise(logits, self.scope.paths, ctx.expanded_idx_mapping, self._penalties())
        return logits


class PathBadWords(_Wrapper):
    """Bad words that may begin in the text and end on a row's own path."""

    def __init__(self, inner: BadWordsState, scope: PathScope) -> None:
        super().__init__(inner)
        self.scope = scope
        self.num_words = inner.num_bad_words.np
        self.longest = np.zeros_like(self.num_words)
        self._words()

    def _words(self) -> BadWords:
        """Read in every step: when vLLM writes such a tensor from the host, it switches to another buffer."""
        states = self.inner.req_states
        return BadWords(
            tokens=self.inner.bad_word_token_ids.gpu,
            offsets=self.inner.bad_word_offsets.gpu,
            num_words=self.inner.num_bad_words.gpu,
            text=states.all_token_ids.gpu,
            prompt_len=states.prompt_len.gpu,
            total_len=states.total_len.gpu,
        )

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        words = sampling_params.bad_words_token_ids or []
        self.longest[req_idx] = max(map(len, words), default=0)
        return super().add_request(req_idx, sampling_params)

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        if self.scope.paths is None:
            return self.inner.apply(logits, ctx)
        max_words = int(self.num_words[ctx.idx_mapping_np].max())
        if max_words > 0:
            max_length = int(self.longest[ctx.idx_mapping_np].max())
            forbid_bad_words(logits, self.scope.paths, ctx.expanded_idx_mapping, self._words(), max_words, max_length)
        return logits


class ChainProcessor(_Wrapper):
    """A custom processor: it may use earlier tokens in any way, so requests whose logits it changes get chains."""

    def __init__(self, inner: LogitsProcessor, rows: DraftRows) -> None:
        super().__init__(inner)
        self.rows = rows

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        changes_logits = super().add_request(req_idx, sampling_params)
        if changes_logits:
            self.rows.restrict_to_chain(req_idx)
        return changes_logits


def follow_paths(sampler: Any, rows: DraftRows) -> PathScope:
    """Replace the sampler's processors by ones that follow a tree's paths while the returned scope is in use.

    Raises:
        InterfaceChangedError: The sampler's processors are not those that this was written for.
    """
    scope = PathScope()
    known = [LogitBiasState, PenaltiesState, BadWordsState]
    own, custom = sampler.logits_processors[: len(known)], sampler.logits_processors[len(known) :]
    if [type(processor) for processor in own] != known:
        names = [type(processor).__name__ for processor in own]
        raise InterfaceChangedError(
            f"redrafter-vllm knows a sampler that biases, penalises and bans words in this order; this vLLM's first "
            f"processors are {names}; install a vLLM version listed in docs/design/vllm_interface.md."
        )
    bias, penalties, bad_words = own
    try:
        wrapped = [bias, PathPenalties(penalties, scope), PathBadWords(bad_words, scope)]
    except AttributeError as error:
        raise InterfaceChangedError(
            f"redrafter-vllm reads the state of vLLM's penalties and bad words, which has changed ({error}); install a "
            "vLLM version listed in docs/design/vllm_interface.md."
        ) from error
    sampler.logits_processors = [*wrapped, *(ChainProcessor(processor, rows) for processor in custom)]
    return scope
