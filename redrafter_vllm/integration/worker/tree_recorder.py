# SPDX-License-Identifier: Apache-2.0
"""Draft trees of a running engine, for whoever watches it.

`vllm serve … --worker-extension-cls redrafter_vllm.integration.worker.tree_recorder.TreeRecording` gives the workers
two methods, which vLLM calls by name (`/collective_rpc`, `LLM.collective_rpc`). A server without the option has none of
this, and one with it records nothing until it is asked to.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor
from vllm.v1.worker.gpu.input_batch import InputBatch
from vllm.v1.worker.gpu.sample.output import SamplerOutput

from redrafter_vllm.integration.worker.sampler import TreeSampler

MAX_STEPS = 10_000  # a forgotten recording must not fill the memory


class RecordedTree(TypedDict):
    """What one step verified of one request. Parent −1 is the root, the last token that the step before emitted."""

    request: str  # vLLM's id, which contains that of the client
    tokens: list[int]  # of the nodes
    parents: list[int]
    path: list[int]  # accepted nodes, from the root down
    emitted: int  # 1 + accepted nodes; 0 where the request's prompt is not yet complete


@dataclass
class _Step:
    """The tensors of a step, on the device: reading them at once would make every step wait."""

    requests: list[str]
    tokens: Tensor  # [B, N]
    parents: Tensor  # [B, N]
    valid: Tensor  # [B, N]
    path: Tensor  # [B, T]
    num_sampled: Tensor  # [B]

    def trees(self) -> list[RecordedTree]:
        found: list[RecordedTree] = []
        for index, request in enumerate(self.requests):
            count = int(self.valid[index].sum())  # valid nodes are the first ones
            path = [node for node in self.path[index].tolist() if node >= 0]
            tokens, parents = self.tokens[index, :count].tolist(), self.parents[index, :count].tolist()
            found.append(
                RecordedTree(
                    request=request, tokens=tokens, parents=parents, path=path, emitted=int(self.num_sampled[index])
                )
            )
        return found


class TreeRecorder:
    """Takes the place of a runner's `TreeSampler` and keeps a copy of what each step verified."""

    def __init__(self, sampler: TreeSampler) -> None:
        self.sampler = sampler
        self.steps: list[_Step] = []

    def __call__(self, logits: Tensor, input_batch: InputBatch, *args: Any) -> SamplerOutput:
        output = self.sampler(logits, input_batch, *args)
        step = self.sampler.speculator.step
        if len(self.steps) < MAX_STEPS and step is not None and step.drafts is not None and step.walk is not None:
            drafts = step.drafts  # views of buffers that the next step overwrites
            self.steps.append(
                _Step(
                    requests=list(input_batch.req_ids),
                    tokens=drafts.tokens.clone(),
                    parents=drafts.parents.clone(),
                    valid=drafts.valid.clone(),
                    path=step.walk.path.clone(),
                    num_sampled=output.num_sampled.clone(),
                )
            )
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


class TreeRecording:
    """Methods of a worker, added by vLLM to its class."""

    model_runner: Any

    def start_tree_recording(self) -> None:
        """Keep the trees of every step from now on; trees kept before are dropped.

        Raises:
            ValueError: This engine does not draft with ReDrafter.
        """
        self.stop_tree_recording()
        sampler = self.model_runner.rejection_sampler
        if not isinstance(sampler, TreeSampler):
            raise ValueError("This engine does not draft with ReDrafter: it has no trees to record.")
        self.model_runner.rejection_sampler = TreeRecorder(sampler)

    def stop_tree_recording(self) -> list[RecordedTree]:
        """The trees since the start in the order of steps, none if nothing was recorded; waits for the device."""
        recorder = self.model_runner.rejection_sampler
        if not isinstance(recorder, TreeRecorder):
            return []
        self.model_runner.rejection_sampler = recorder.sampler
        return [tree for step in recorder.steps for tree in step.trees()]
