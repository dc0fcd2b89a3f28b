# SPDX-License-Identifier: Apache-2.0
"""The lines that join the nodes of a drawn tree."""

from collections.abc import Collection, Iterator, Sequence

ROOT = -1  # the parent of nodes under the root


def branches(parents: Sequence[int], shown: Collection[int] | None = None) -> Iterator[tuple[str, int]]:
    """Nodes from top to bottom, each with what stands before it on its line; children in order of their indices.

    Args:
        parents: [N] parent of each node, −1 under the root.
        shown: The nodes to draw, with each also its parent; None draws all.
    """
    wanted = range(len(parents)) if shown is None else shown
    yield from _below(ROOT, "", parents, wanted)


def _below(parent: int, indent: str, parents: Sequence[int], wanted: Collection[int]) -> Iterator[tuple[str, int]]:
    children = [index for index, above in enumerate(parents) if above == parent and index in wanted]
    for index in children:
        last = index == children[-1]
        yield f"{indent}{'└─' if last else '├─'} ", index
        yield from _below(index, indent + ("   " if last else "│  "), parents, wanted)
