# SPDX-License-Identifier: Apache-2.0
"""The drafter as vLLM's workers see a draft model."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.checkpoint.errors import CheckpointError
from redrafter_vllm.checkpoint.io import canonical_entries, check_finite, check_shapes
from redrafter_vllm.checkpoint.vocab_mapping import MAP, check_map, check_map_header, map_header
from redrafter_vllm.model.drafter import Drafter

_UPDATE = "The weight update"


class NewWeightsError(CheckpointError):
    """A drafter that cannot replace the one being served."""


class DraftModel(nn.Module):
    """The drafter as a module: sleep keeps its buffers, and a trainer sends it weights.

    Its buffers are the tensors that the speculator drafts with. It owns no tensors and has no submodules, because at
    the start of an update vLLM takes a model's tensors out of its modules, while drafting goes on. Received tensors are
    kept on the host until the update is finished, checked together, and only then copied.
    """

    def __init__(
        self,
        config: DrafterConfig,
        dtype: torch.dtype,
        tensors: Callable[[], dict[str, Tensor]],
        replace: Callable[[Callable[[], Drafter]], bool],
    ) -> None:
        """`tensors` returns the tensors in use; `replace` starts using the drafter that its argument returns."""
        super().__init__()
        self.config, self.dtype = config, dtype
        self._tensors, self._replace = tensors, replace
        self._received: dict[str, Tensor] = {}

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The tensors being drafted with, without those that belong to the target."""
        for name, tensor in self._tensors().items():
            yield f"{prefix}.{name}" if prefix else name, tensor

    def begin_update(self) -> None:
        """Drop the tensors of an update that was not finished."""
        self._received.clear()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take some of an update's tensors, under their names in any spelling of a checkpoint."""
        # vLLM passes views of buffers into which it receives the next tensors.
        new = {name: tensor.detach().to("cpu", copy=True) for name, tensor in weights}
        self._received |= new
        return set(new)

    def finish_update(self) -> None:
        """Draft with the received weights.

        Raises:
            CheckpointError: They are not a drafter of the same config; drafting goes on with the old weights.
        """
        received, self._received = self._received, {}
        self._replace(lambda: _drafter_of(received, self.config, self.dtype))


def _drafter_of(received: dict[str, Tensor], config: DrafterConfig, dtype: torch.dtype) -> Drafter:
    """A drafter with the tensors of an update, checked like those of a checkpoint."""
    names = canonical_entries(_UPDATE, received, config, inside_target=False)
    tensors = {name: received[stored] for name, stored in names.items()}
    check_shapes(_UPDATE, config, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    offsets = tensors.pop(MAP, None)
    check_map_header(_UPDATE, config.draft_vocab_size, map_header(offsets))
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise NewWeightsError(
                f"{name} in the weight update is of type {tensor.dtype}: send floating-point weights."
            )
        tensors[name] = tensor.to(dtype)
        check_finite(f"{name} in the weight update", tensors[name])
    if offsets is not None:
        check_map(f"{MAP} in the weight update", offsets, config.vocab_size)
        tensors[MAP] = offsets.to(torch.int64)
    with torch.device("meta"):
        drafter = Drafter(config)
    drafter.load_state_dict(tensors, assign=True)
    return drafter.eval()
