# SPDX-License-Identifier: Apache-2.0
"""Slow, independent implementations of the definitions."""

from collections.abc import Mapping

import torch
from torch import Tensor

from redrafter_vllm import Beams, Drafter, DrafterConfig, DraftTree

Path = tuple[int, ...]


def random_drafter(seed: int = 0, **overrides: object) -> Drafter:
    """A drafter whose weights are large enough for its beams to differ."""
    shape: dict = {"vocab_size": 11, "hidden_size": 6, "exit_dim": 12, "num_draft_layers": 2, "rnn": True} | overrides
    drafter = Drafter(DrafterConfig(**shape))
    generator = torch.Generator().manual_seed(seed)
    for parameter in drafter.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return drafter


def next_log_probs(tensors: Mapping[str, Tensor], embedding: Tensor, context: Tensor, tokens: Path) -> list[float]:
    """log P(next | context, root and drafted tokens) in fp64 from tensors in Apple's layout, one sequence at a time."""
    w = {name: tensor.double() for name, tensor in tensors.items()}

    def silu(x: Tensor) -> Tensor:
        return x / (1 + torch.exp(-x))

    state = torch.zeros(context.shape[-1], dtype=torch.float64)
    for token in tokens:
        e = embedding[token].double()
        state = (
            silu(w["rnn_w.weight"] @ e + w["rnn_u.weight"] @ state + w["rnn_u.bias"])
            if "rnn_u.bias" in w
            else state + e
        )
    x = torch.cat((context.double(), state))
    if "input_proj.weight" in w:
        x = w["input_proj.weight"] @ x + w["input_proj.bias"]
    layer = 0
    while f"lm_head.{layer}.linear.weight" in w:
        x = x + silu(w[f"lm_head.{layer}.linear.weight"] @ x + w[f"lm_head.{layer}.linear.bias"])
        layer += 1
    logits = w[f"lm_head.{layer}.weight"] @ x
    return (logits - logits.logsumexp(0)).tolist()


def beams_of_row(
    tensors: Mapping[str, Tensor], embedding: Tensor, context: Tensor, root: int, width: int, length: int
) -> list[tuple[Path, list[float]]]:
    """Beam search with Python lists: drafted tokens and their conditional log-probabilities, best first."""
    beams: list[tuple[Path, list[float]]] = [((), [])]
    for _ in range(length):
        grown = [
            ((*tokens, token), [*log_probs, log_prob])
            for tokens, log_probs in beams
            for token, log_prob in enumerate(next_log_probs(tensors, embedding, context, (root, *tokens)))
        ]
        beams = sorted(grown, key=lambda beam: -sum(beam[1]))[:width]
    return beams


def steps_of_row(
    tensors: Mapping[str, Tensor], embedding: Tensor, context: Tensor, root: int, width: int, length: int
) -> list[list[tuple[Path, float]]]:
    """`beams_of_row` after each step, with the log-probability of the whole beam."""
    return [
        [(tokens, sum(log_probs)) for tokens, log_probs in beams_of_row(tensors, embedding, context, root, width, step)]
        for step in range(1, length + 1)
    ]


def kept_beams(beams: Beams, row: int) -> list[list[tuple[Path, float]]]:
    """The tokens and the log-probability of each beam of each step of one row, by following parents."""
    kept: list[list[tuple[Path, float]]] = [[((), 0.0)]]
    for tokens, parents, log_probs in zip(
        beams.tokens[row].tolist(), beams.parents[row].tolist(), beams.log_probs[row].tolist(), strict=True
    ):
        above = kept[-1] if len(kept) > 1 else kept[0] * len(tokens)
        kept.append(
            [
                ((*above[parent][0], token), log_prob)
                for token, parent, log_prob in zip(tokens, parents, log_probs, strict=True)
            ]
        )
    return kept[1:]


def tree_nodes(beams: Beams, row: int, limit: int | None = None) -> list[tuple[Path, float]]:
    """The beams of one row in the order of the nodes; with a `limit`, the last step's best and their prefixes."""
    kept = kept_beams(beams, row)
    whole = limit is None or limit >= len(kept[0])
    best = [path for path, _ in kept[-1][:limit]]
    nodes = [
        (-log_prob, depth, beam, path)
        for depth, step in enumerate(kept, 1)
        for beam, (path, log_prob) in enumerate(step)
        if whole or any(leaf[:depth] == path for leaf in best)
    ]
    return [(path, -negative) for negative, _, _, path in sorted(nodes)]


def paths(tree: DraftTree, row: int) -> list[Path]:
    """The root-to-node token path of every node of one row, by following parents."""
    found: list[Path] = []
    for node in range(int(tree.num_nodes[row])):
        parent = int(tree.parents[row, node])
        assert -1 <= parent < node, "a parent must precede its child"
        found.append((*(found[parent] if parent >= 0 else ()), int(tree.tokens[row, node])))
    return found
