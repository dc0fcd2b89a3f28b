# SPDX-License-Identifier: Apache-2.0
"""What a step of the target and a drafting round have to do, counted from shapes, and how long a GPU takes for it.

Durations of reading, computing, launching and exchanging are added up. A GPU overlaps some of them, and a roofline
would take the longest alone; a published fit of measured steps is linear in rows, as the sum is (docs/predicting.md).
"""

from dataclasses import dataclass

from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.gpu import Gpu
from redrafter_vllm.predict.shapes import LlamaShape, count

NUMBER_BYTES = 2  # bfloat16 and float16
LAYER_KERNELS = 10  # two norms, four products, rotary embedding, cache, attention, activation
TREE_KERNELS = 2  # more in a layer that attends to a tree: context and nodes apart, then merged
STEP_KERNELS = 5  # embedding, last norm, output layer, sampling
BEAM_STEP_KERNELS = 12  # with two residual blocks; docs/design/architecture.md, "Kernels"
ROUND_KERNELS = 5  # walk, compaction, inputs of the round, tree, storing it


@dataclass(frozen=True)
class Work:
    """What each GPU of a tensor-parallel group does."""

    bytes: float = 0.0  # read from its memory
    operations: float = 0.0  # a multiplication and an addition are two
    kernels: int = 0
    exchanges: int = 0  # all-reduces, or gathers of about the same size
    exchanged: float = 0.0  # bytes of the tensors in all exchanges together

    def __add__(self, other: "Work") -> "Work":
        return Work(*(own + its for own, its in zip(vars(self).values(), vars(other).values(), strict=True)))


def seconds(work: Work, gpu: Gpu, parallel: int = 1) -> float:
    """Duration of `work` on each of `parallel` GPUs."""
    alone = work.bytes / gpu.bytes_per_second + work.operations / gpu.flops + 1e-6 * gpu.launch_us * work.kernels
    if parallel == 1:
        return alone
    # Every GPU sends and receives 2 · (p − 1) / p of a tensor that is summed over p GPUs.
    sent = 2 * (parallel - 1) / parallel * work.exchanged
    return alone + 1e-6 * gpu.all_reduce_us * work.exchanges + sent / (1e9 * gpu.link_gb_s)


def target_step(
    shape: LlamaShape, rows: int, requests: int, context: int, parallel: int = 1, *, has_trees: bool = False
) -> Work:
    """A pass over `rows` tokens of `requests` requests, which have `context` tokens in the cache each."""
    layers = shape.num_hidden_layers
    attended = 4 * shape.num_attention_heads * shape.head_dim * context * layers  # operations of a row
    return Work(
        bytes=(NUMBER_BYTES * weights(shape) + requests * context * cache_bytes(shape)) / parallel,
        operations=rows * (2 * weights(shape) + attended) / parallel,
        kernels=layers * (LAYER_KERNELS + (TREE_KERNELS if has_trees else 0)) + STEP_KERNELS,
        exchanges=2 * layers + 2,  # behind attention and MLP of each layer, the embedding, the logits
        exchanged=NUMBER_BYTES * rows * shape.hidden_size * (2 * layers + 1),
    )


def drafting_round(config: DrafterConfig, drafting: DraftingConfig, requests: int, parallel: int = 1) -> Work:
    """A round of all requests. Every beam step reads the weights again; the context's half is computed once.

    Of several GPUs each has its slice of the output layer and all of the rest.
    """
    head = config.output_size * config.exit_dim
    # With the bias of the first layer. Without a layer before it the output layer is the first one, half of it once.
    context_half = config.first_size * config.hidden_size + (0 if config.starts_with_output else config.first_size)
    if config.starts_with_output:
        head -= context_half
    rest = count(tensor_shapes(config)) - head - context_half
    per_step = rest + head / parallel
    width, length = drafting.beam_width, drafting.beam_length
    beams = requests * (1 + (length - 1) * width)  # the first step continues the root alone
    return Work(
        bytes=NUMBER_BYTES * (length * per_step + context_half),
        operations=2 * (beams * per_step + requests * context_half),
        kernels=length * BEAM_STEP_KERNELS + ROUND_KERNELS,
        exchanges=2 * length,  # the last tokens' embeddings, and the best logits of each slice
        exchanged=NUMBER_BYTES * beams * config.hidden_size,
    )


def weights(shape: LlamaShape) -> int:
    """Numbers that a pass multiplies with: of an input embedding of its own it reads only single rows."""
    own_embedding = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
    return shape.num_parameters - own_embedding


def cache_bytes(shape: LlamaShape) -> int:
    """Keys and values of one token in all layers."""
    return 2 * NUMBER_BYTES * shape.num_hidden_layers * shape.num_key_value_heads * shape.head_dim
