# SPDX-License-Identifier: Apache-2.0
"""Draft trees of a running engine, for whoever watches it.

`vllm serve … --worker-extension-cls redrafter_vllm.integration.worker.tree_recorder.TreeRecording` gives the workers
three methods, which vLLM calls by name (`/collective_rpc`, `LLM.collective_rpc`). A server without the option has none
of this, and one with it records nothing until it is asked to.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor
from vllm.v1.worker.gpu.input_batch import InputBatch

from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator

MAX_STEPS = 10_000  # a forgotten recording must not fill the memory


class RecordedTree(TypedDict):
    """What one step verified of one request. Parent −1 is the root, the last token that the step before emitted.

    There are no nodes in a prompt's steps, and in those in which none paid.
    """

    request: str  # vLLM's id, which contains that of the client
    tokens: list[int]  # of the nodes
    parents: list[int]
    path: list[int]  # accepted nodes, from the root down
    emitted: int  # 1 + accepted nodes; 0 where the request's prompt is not yet complete


@dataclass
class _Drafts:
    """The trees of a step and what was accepted of them."""

    tokens: Tensor  # [B, N]
    parents: Tensor  # [B, N]
    valid: Tensor  # [B, N]
    path: Tensor  # [B, T]

    def by_request(self) -> list[tuple[list[int], list[int], list[int]]]:
        """Tokens and parents of the nodes, and the accepted ones."""
        counts = self.valid.sum(1).tolist()  # valid nodes are the first ones
        rows = zip(counts, self.tokens.tolist(), self.parents.tolist(), self.path.tolist(), strict=True)
        return [
            (tokens[:count], parents[:count], [node for node in path if node >= 0])
            for count, tokens, parents, path in rows
        ]


@dataclass
class _Step:
    """The tensors of a step, on the device: reading them at once would make every step wait."""

    requests: list[str]
    num_sampled: Tensor  # [B]
    drafts: _Drafts | None

    def trees(self) -> list[RecordedTree]:
        emitted = self.num_sampled.tolist()
        drawn = [([], [], [])] * len(emitted) if self.drafts is None else self.drafts.by_request()
        return [
            RecordedTree(request=request, tokens=tokens, parents=parents, path=path, emitted=count)
            for request, (tokens, parents, path), count in zip(self.requests, drawn, emitted, strict=True)
        ]


class TreeRecorder:
    """Takes the place of a speculator's `propose`, the end of every step, and keeps what the step verified."""

    def __init__(self, speculator: RedrafterSpeculator) -> None:
        self.speculator, self.propose = speculator, speculator.propose
        self.steps: list[_Step] = []

    def __call__(
        self,
        input_batch: InputBatch,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: Tensor,
        aux_hidden_states: list[Tensor] | None,
        num_sampled: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if len(self.steps) < MAX_STEPS and not kwargs.get("dummy_run"):
            self.steps.append(_Step(list(input_batch.req_ids), num_sampled.clone(), self._drafts()))
        return self.propose(
            input_batch,
            attn_metadata,
            slot_mappings,
            last_hidden_states,
            aux_hidden_states,
            num_sampled,
            *args,
            **kwargs,
        )

    def take(self) -> list[RecordedTree]:
        """The trees since the last call, in the order of steps; waits for the device."""
        steps, self.steps = self.steps, []
        return [tree for step in steps for tree in step.trees()]

    def _drafts(self) -> _Drafts | None:
        step = self.speculator.step
        if step is None or step.drafts is None or step.walk is None:
            return None
        drafts = step.drafts  # views of buffers that the next step overwrites
        kept = (drafts.tokens, drafts.parents, drafts.valid, step.walk.path)
        return _Drafts(*(tensor.clone() for tensor in kept))


class TreeRecording:
    """Methods of a worker, added by vLLM to its class."""

    model_runner: Any

    def start_tree_recording(self) -> None:
        """Keep the trees of every step from now on; trees kept before are dropped.

        Raises:
            ValueError: This engine does not draft with ReDrafter.
        """
        self.stop_tree_recording()
        speculator = self.model_runner.speculator
        if not isinstance(speculator, RedrafterSpeculator):
            raise ValueError("This engine does not draft with ReDrafter: it has no trees to record.")
        # On the object: its class stays as it is, for every engine of the process.
        speculator.__dict__["propose"] = TreeRecorder(speculator)

    def read_tree_recording(self) -> list[RecordedTree]:
        """The trees since the start or the last call, in the order of steps; waits for the device."""
        recorder = self._recorder()
        return [] if recorder is None else recorder.take()

    def stop_tree_recording(self) -> list[RecordedTree]:
        """The trees that have not been read, in the order of steps; waits for the device."""
        recorder = self._recorder()
        if recorder is None:
            return []
        del recorder.speculator.__dict__["propose"]
        return recorder.take()

    def _recorder(self) -> TreeRecorder | None:
        found = vars(self.model_runner.speculator or object).get("propose")
        return found if isinstance(found, TreeRecorder) else None
