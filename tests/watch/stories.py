# SPDX-License-Identifier: Apache-2.0
"""A comparison worked by hand: five tokens in five steps, and in three with drafts."""

from redrafter_vllm.watch.race import Race
from redrafter_vllm.watch.recording import Recording, Step, Tree

WORDS = ("The", " sky", " is", " blue", " today")
TREE = Tree(
    root="The",
    nodes=(" sky", " sea", " is", " was", " blue", " grey"),
    parents=(-1, -1, 0, 0, 2, 1),
    path=(0, 2),
)
LAST_TREE = Tree(root=" blue", nodes=(" and",), parents=(-1,), path=())


def race() -> Race:
    """Plain decoding takes 0.1 s a step, ReDrafter 0.15 s."""
    plain = Recording("plain", [Step(place / 10, (word,)) for place, word in enumerate(WORDS)], ended=True)
    steps = [Step(0.0, WORDS[:1]), Step(0.15, WORDS[1:4], TREE), Step(0.3, WORDS[4:], LAST_TREE)]
    return Race("Why is it blue?", plain, Recording("ReDrafter", steps, ended=True))
