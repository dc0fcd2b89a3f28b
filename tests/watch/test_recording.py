# SPDX-License-Identifier: Apache-2.0
"""Steps and trees of a stream, on hand-worked cases."""

import pytest

from redrafter_vllm.watch.race import Race
from redrafter_vllm.watch.recording import Recording, Step, VerifiedTree, shared_tokens, steps_so_far, with_trees
from tests.watch.stories import LAST_TREE, TREE, race

# Two steps, of two tokens and of one, that arrived together at 0.5 s.
ARRIVED = [Step(0.0, ("a",)), Step(0.5, ("b", "c", "d")), Step(0.7, ("e",))]
FIRST = VerifiedTree(("b", "x", "y"), (-1, -1, 0), (0,), 2)
SECOND = VerifiedTree(("z",), (-1,), (), 1)
THIRD = VerifiedTree(("e", "f"), (-1, 0), (0, 1), 3)  # the answer ended within its path
PROMPT = VerifiedTree((), (), (), 1)


def test_steps_are_those_of_the_engine() -> None:
    steps = with_trees(ARRIVED, [PROMPT, FIRST, SECOND, THIRD])
    assert steps is not None
    assert [(step.seconds, step.texts) for step in steps] == [
        (0.0, ("a",)),
        (0.5, ("b", "c")),
        (0.5, ("d",)),
        (0.7, ("e",)),
    ]
    assert [step.tree.root for step in steps if step.tree is not None] == ["a", "c", "d"]
    # The last token was a draft, as the target's own token behind the path was not asked for.
    assert [step.num_drafts for step in steps] == [0, 1, 0, 1]


def test_what_is_no_step_of_decoding_is_left_out() -> None:
    chunk = VerifiedTree((), (), (), 0)
    expected = with_trees(ARRIVED, [PROMPT, FIRST, SECOND, THIRD])
    assert with_trees(ARRIVED, [chunk, chunk, PROMPT, FIRST, SECOND, THIRD]) == expected
    assert with_trees(ARRIVED, [PROMPT, FIRST, SECOND, THIRD, SECOND]) == expected  # a step after the end


def test_a_step_in_which_no_node_paid_is_a_step() -> None:
    nothing = VerifiedTree((), (), (), 1)
    steps = with_trees(ARRIVED, [PROMPT, nothing, FIRST, nothing])
    assert steps is not None
    assert [step.texts for step in steps] == [("a",), ("b",), ("c", "d"), ("e",)]
    assert [step.num_drafts for step in steps] == [0, 0, 1, 0]


def test_steps_of_which_both_tokens_and_tree_have_come() -> None:
    """Of the stream `a`, `bcd`, `e`, with trees that emit two tokens, one and three."""
    shown = [
        [step.texts for step in steps_so_far(ARRIVED[:arrived], [PROMPT, FIRST, SECOND, THIRD][:read])]
        for arrived, read in ((0, 4), (1, 0), (1, 2), (2, 2), (2, 4), (3, 1))
    ]
    assert shown == [
        [],
        [("a",)],
        [("a",)],  # the tree came first
        [("a",), ("b", "c")],  # the tokens came first
        [("a",), ("b", "c"), ("d",)],
        [("a",)],
    ]
    assert steps_so_far(ARRIVED, [PROMPT, FIRST, SECOND])[-1] == with_trees(ARRIVED, [PROMPT, FIRST, SECOND, THIRD])[2]


@pytest.mark.parametrize("trees", [[], [FIRST], [FIRST, SECOND], [FIRST, THIRD, SECOND, SECOND, SECOND, SECOND]])
def test_trees_of_another_answer_do_not_fit(trees: list[VerifiedTree]) -> None:
    assert with_trees(ARRIVED, [PROMPT, *trees]) is None


def test_accepted_nodes_have_the_streamed_text() -> None:
    """A tokenizer may take the blank from a token that it decodes alone."""
    steps = with_trees(
        [Step(0.0, ("a",)), Step(0.1, (" b", " c"))], [PROMPT, VerifiedTree(("b", "x"), (-1, -1), (0,), 2)]
    )
    assert steps is not None and steps[1].tree is not None
    assert steps[1].tree.nodes == (" b", "x")


def test_figures_at_a_time() -> None:
    drafted = race().drafted
    figures = drafted.figures(0.2)
    assert (figures.tokens, figures.steps, figures.tokens_per_step, figures.tokens_per_second) == (4, 2, 3.0, 20.0)
    assert drafted.figures().tokens_per_second == pytest.approx(4 / 0.3)
    assert drafted.until(0.0) == drafted.steps[:1]


def test_depths() -> None:
    assert [TREE.depth(node) for node in range(6)] == [1, 1, 2, 2, 3, 2]
    assert LAST_TREE.depth(0) == 1


def test_the_result() -> None:
    told = race()
    # 4 tokens in 0.3 s against 4 in 0.4 s.
    assert told.result() == ["ReDrafter: 1.33 times plain decoding.", "The same 5 tokens."]
    assert (told.duration, told.first_end) == (0.4, 0.3)
    assert told.slow_motion == 20  # 10 times slower would take 4 s
    told.plain.steps[3] = Step(0.3, (" red",))
    assert shared_tokens(told.plain, told.drafted) == 3
    assert "The same 3 tokens, then others" in told.result()[1]


def test_a_server_without_drafts_is_noticed() -> None:
    told = race()
    without = Race(told.prompt, told.plain, Recording("ReDrafter", told.plain.steps, ended=True))
    assert without.result()[-1].startswith("No draft was accepted")
