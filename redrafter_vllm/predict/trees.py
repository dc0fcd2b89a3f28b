# SPDX-License-Identifier: Apache-2.0
"""Draft trees on a command line and in tables."""

import argparse

from redrafter_vllm.config import DraftingConfig


def parse_tree(text: str) -> DraftingConfig:
    """`WxT` or `WxT:N`: W beams of T draft tokens, in N nodes; without N, as serving chooses.

    With `+` behind it, trees also have copies of the text (`prompt_lookup`). With `~` at the end, N is the most that a
    step may have: trees adapt. Without, they are fixed.

    Raises:
        ValueError: Another form, or sizes that drafting does not take.
    """
    is_adaptive = text.endswith("~")
    size = text.removesuffix("~")
    shape, colon, nodes = size.removesuffix("+").partition(":")
    width, by, length = shape.partition("x")
    if not (by and width.isdecimal() and length.isdecimal() and (nodes.isdecimal() or not colon)):
        raise ValueError(
            f"{text!r} is no tree: give BEAMSxLENGTH or BEAMSxLENGTH:NODES, for instance 4x4:12, + behind it for "
            "copies of the text, and ~ at the end for an adaptive one"
        )
    return DraftingConfig(
        int(width), int(length), int(nodes or 0), adaptive=is_adaptive, prompt_lookup=size.endswith("+")
    )


def tree_list(text: str) -> tuple[DraftingConfig, ...]:
    """Several trees for argparse, with spaces between them."""
    try:
        return tuple(map(parse_tree, text.split()))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def tree_text(tree: DraftingConfig) -> str:
    """What `parse_tree` reads as this tree."""
    behind = ("+" if tree.copies_text else "") + ("~" if tree.adaptive else "")
    return f"{tree.beam_width}x{tree.beam_length}:{tree.num_speculative_tokens}{behind}"


def tree_name(tree: DraftingConfig) -> str:
    """How tables name a tree."""
    limit = "up to " if tree.adaptive else ""
    copies = ", copies" if tree.copies_text else ""
    return f"{tree.beam_width}x{tree.beam_length}, {limit}{tree.num_speculative_tokens} nodes{copies}"
