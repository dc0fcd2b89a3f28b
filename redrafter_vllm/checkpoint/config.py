# SPDX-License-Identifier: Apache-2.0
"""The shape of a drafter: its configuration and the tensors that follow from it."""

from dataclasses import dataclass

from redrafter_vllm.utils.messages import shown

# Far above any real drafter, and small enough to compute with sizes from a file before its tensors confirm them.
MAX_SIZE = 1 << 24
MAX_DRAFT_LAYERS = 1000


@dataclass(frozen=True)
class DrafterConfig:
    """Shape of a drafter; the names are those of Apple's `config.json`.

    `draft_vocab_size`, a key of EAGLE-3 checkpoints, trims the output layer to that many of the target's tokens.

    Raises ValueError for sizes that are not integers from 1 to `MAX_SIZE`, for `num_draft_layers` other than 0 to
    `MAX_DRAFT_LAYERS`, for an `rnn` that is not a boolean and for a draft vocabulary larger than the vocabulary.
    """

    vocab_size: int
    hidden_size: int
    exit_dim: int
    num_draft_layers: int
    rnn: bool = True
    draft_vocab_size: int | None = None

    def __post_init__(self) -> None:
        for name, minimum, maximum in (
            ("vocab_size", 1, MAX_SIZE),
            ("hidden_size", 1, MAX_SIZE),
            ("exit_dim", 1, MAX_SIZE),
            ("num_draft_layers", 0, MAX_DRAFT_LAYERS),
        ):
            value = getattr(self, name)
            if type(value) is not int or not minimum <= value <= maximum:
                raise ValueError(f"{name} must be an integer from {minimum} to {maximum}, not {shown(value)}")
        if type(self.rnn) is not bool:
            raise ValueError(f"rnn must be true or false, not {shown(self.rnn)}")
        trimmed = self.draft_vocab_size
        if trimmed is not None and (type(trimmed) is not int or not 1 <= trimmed <= self.vocab_size):
            raise ValueError(
                f"draft_vocab_size must be null or an integer from 1 to vocab_size {self.vocab_size}, not "
                f"{shown(trimmed)}"
            )

    @property
    def output_size(self) -> int:
        """Rows of the output layer: the draft vocabulary, or else the whole one."""
        return self.vocab_size if self.draft_vocab_size is None else self.draft_vocab_size

    @property
    def has_input_proj(self) -> bool:
        return self.exit_dim != 2 * self.hidden_size

    @property
    def starts_with_output(self) -> bool:
        """Whether the output layer is the first linear layer: neither a projection nor a ResBlock before it."""
        return not self.has_input_proj and self.num_draft_layers == 0

    @property
    def first_size(self) -> int:
        """Rows of the first linear layer, the one whose input is c ⊕ s."""
        return self.output_size if self.starts_with_output else self.exit_dim


def tensor_shapes(config: DrafterConfig) -> dict[str, tuple[int, ...]]:
    """Every weight and bias of a drafter, under Apple's names; not the draft vocabulary's map."""
    hidden, exit_dim, layers = config.hidden_size, config.exit_dim, config.num_draft_layers
    shapes: dict[str, tuple[int, ...]] = {}
    if config.has_input_proj:
        shapes |= {"input_proj.weight": (exit_dim, 2 * hidden), "input_proj.bias": (exit_dim,)}
    for index in range(layers):
        shapes |= {
            f"lm_head.{index}.linear.weight": (exit_dim, exit_dim),
            f"lm_head.{index}.linear.bias": (exit_dim,),
        }
    shapes[f"lm_head.{layers}.weight"] = (config.output_size, exit_dim)
    if config.rnn:
        shapes |= {"rnn_u.weight": (hidden, hidden), "rnn_u.bias": (hidden,), "rnn_w.weight": (hidden, hidden)}
    return shapes
