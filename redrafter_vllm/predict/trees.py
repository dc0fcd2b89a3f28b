# SPDX-License-Identifier: Apache-2.0
"""Draft trees on a command line and in tables."""

import argparse

from redrafter_vllm.config import DraftingConfig


def parse_tree(text: str) -> DraftingConfig:
    """`WxT` or `WxT:N`: W beams of T draft tokens, in N nodes; without N, as serving chooses.

    With `~` behind it, N is the most that a step may have: trees adapt. Without, they are fixed.

    Raises:
        ValueError: Another form, or sizes that drafting does not take.
    """
    is_adaptive = text.endswith("~")
    shape, colon, nodes = text.removesuffix("~").partition(":")
    width, by, length = shape.partition("x")
    if not (by and width.isdecimal() and length.isdecimal() and (nodes.isdecimal() or not colon)):
        raise ValueError(
            f"{text!r} is no tree: give BEAMSxLENGTH or BEAMSxLENGTH:NODES, for instance 4x4:12, and ~ behind it for "
            "an adaptive one"
        )
    return DraftingConfig(int(width), int(length), int(nodes or 0), adaptive=is_adaptive)


def tree_list(text: str) -> tuple[DraftingConfig, ...]:
    """Several trees for argparse, with spaces between them."""
    try:
        return tuple(map(parse_tree, text.split()))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def tree_text(tree: DraftingConfig) -> str:
    """What `parse_tree` reads as this tree."""
    return f"{tree.beam_width}x{tree.beam_length}:{tree.num_speculative_tokens}{'~' if tree.adaptive else ''}"


def tree_name(tree: DraftingConfig) -> str:
    """How tables name a tree."""
    limit = "up to " if tree.adaptive else ""
    return f"{tree.beam_width}x{tree.beam_length}, {limit}{tree.num_speculative_tokens} nodes"
