# SPDX-License-Identifier: Apache-2.0
"""What each request drafted and accepted, recorded where trees are walked."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from redrafter_vllm.integration.worker.sampler import TreeSampler


@dataclass
class Drafting:
    """Sums over the verification steps of one request that had drafts."""

    steps: int = 0
    accepted: int = 0
    branching: int = 0  # steps whose tree was not a chain

    @property
    def tokens_per_step(self) -> float:
        return 1 + self.accepted / max(self.steps, 1)


class Watch:
    """Drafting by request id; ids begin with a number that counts up."""

    def __init__(self) -> None:
        self.by_id: dict[str, Drafting] = defaultdict(Drafting)

    def in_order(self, outputs: Sequence[Any]) -> list[Drafting]:
        """One entry per request of `outputs`; completions of one request (`n`) are summed."""
        return [self._of(output.request_id) for output in outputs]

    def _of(self, request_id: str) -> Drafting:
        total = Drafting()
        for name, own in self.by_id.items():
            # The engine's ids: `7-<random>`, and `0_7-<random>` for the first of several completions.
            if name.split("-")[0].split("_")[-1] == request_id:
                total.steps += own.steps
                total.accepted += own.accepted
                total.branching += own.branching
        return total


@contextmanager
def watched() -> Iterator[Watch]:
    """Watches every engine of this process."""
    watch = Watch()
    verify = TreeSampler.__call__

    def look(self: TreeSampler, logits: Any, batch: Any, *args: Any) -> Any:
        output = verify(self, logits, batch, *args)
        assert self.speculator.step is not None
        drafts = self.speculator.step.drafts
        assert drafts is not None
        for index, name in enumerate(batch.req_ids):
            parents = drafts.parents[index, drafts.valid[index]].tolist()
            if parents:
                own = watch.by_id[name]
                own.steps += 1
                own.accepted += max(int(output.num_sampled[index]) - 1, 0)
                own.branching += parents != list(range(-1, len(parents) - 1))
        return output

    with patch.object(TreeSampler, "__call__", look):
        yield watch
