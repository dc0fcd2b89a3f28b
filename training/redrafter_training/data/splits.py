# SPDX-License-Identifier: Apache-2.0
"""The split into training and held-out texts, decided by their content and not by their position.

Texts are compared by the keys of their turns (see `text_keys`). No turn of a held-out text occurs in a training text,
and vice versa.

A group of texts, those with the same first prompt or the pieces of one document, is held out as a whole, by the hash of
the prompt or document. So a record is on the same side in any order and with any number of workers. It is also on the
same side whatever other records there are, unless the data is too small or too uniform.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from redrafter_training.data.conversations import Conversation, Turn
from redrafter_training.data.report import DataError
from redrafter_training.data.text_keys import text_key

Exchanges = tuple[tuple[int, ...], ...]

HELD_OUT_SHARE = 20  # one group in HELD_OUT_SHARE is held out
KEYS = 1 << 63
MIN_TEXTS_PER_HELD_OUT = 4  # at most one text in 4 is held out if prompts share their answers


@dataclass(frozen=True)
class Content:
    """The content of one text, as keys.

    `exchanges` are in order: a prompt with its answer, a prompt alone that is still to be answered, or a piece of plain
    text. A text can be cut after any of them.
    """

    group: int  # key of the first prompt, or of the whole document
    exchanges: Exchanges

    @property
    def first(self) -> int:
        """Key of the first prompt, or of the piece of text."""
        return self.exchanges[0][0]

    def before(self, taken: Set[int]) -> int:
        """The number of exchanges before the first one that contains one of `taken`."""
        for number, exchange in enumerate(self.exchanges):
            if any(key in taken for key in exchange):
                return number
        return len(self.exchanges)


@dataclass(frozen=True)
class Kept:
    """A text, by its index, and the number of its exchanges that are kept."""

    index: int
    exchanges: int


@dataclass(frozen=True)
class Split:
    """The texts to train on and to measure on, and why some are neither."""

    training: list[Kept]
    held_out: list[Kept]
    prompts: list[int]  # index of one text for each held-out prompt or document; the prompt does not occur in training
    keys: frozenset[int]  # of all held-out content
    texts: int
    groups: int
    duplicates: int  # texts equal to another one
    keeps_duplicates: bool
    shared: int  # training texts that are cut or left out because of a held-out turn
    unmeasured: int  # held-out texts that are cut or left out because of a turn in training

    def facts(self) -> dict[str, object]:
        """The numbers for `training.json`."""
        return {
            "training": len(self.training),
            "held_out": len(self.held_out),
            "distinct_prompts": self.groups,
            "held_out_prompts": len(self.prompts),
            "duplicates": self.duplicates,
            "shared_with_held_out": self.shared,
            "held_out_but_trained_on": self.unmeasured,
        }

    def __str__(self) -> str:
        lines = [
            f"{self.texts:,} texts with {self.groups:,} different first prompts or documents; {self.duplicates:,} are "
            f"equal to another one and are {'kept' if self.keeps_duplicates else 'left out'}",
            f"held out: {len(self.prompts):,} prompts or documents with {len(self.held_out):,} texts; "
            f"training: {len(self.training):,} texts",
        ]
        if self.shared:
            lines.append(f"{self.shared:,} training texts are cut or left out: they contain held-out turns")
        if self.unmeasured:
            lines.append(
                f"{self.unmeasured:,} held-out texts are cut or left out: they contain turns of training texts"
            )
        if not self.held_out:
            lines.append("every held-out answer also occurs in training: no held-out loss can be measured")
        return "\n".join(lines)


def content_of(conversation: Conversation, *, answered: bool = True) -> Content:
    """The content of a conversation; `answered` false leaves out its answers, which are to be replaced."""
    exchanges: Exchanges
    if conversation.text is not None:
        whole = text_key(conversation.text)
        return Content(whole, ((whole,),))
    if answered:
        exchanges = tuple((text_key(ask.content), text_key(answer.content)) for ask, answer in pairs(conversation))
    else:
        exchanges = tuple((text_key(turn.content),) for turn in conversation.turns if turn.role == "user")
    return Content(exchanges[0][0], exchanges)


def pairs(conversation: Conversation) -> list[tuple[Turn, Turn]]:
    """Each answered user turn with its answer."""
    spoken = [turn for turn in conversation.turns if turn.role != "system"]
    return list(zip(spoken[::2], spoken[1::2], strict=False))


def divide(contents: Sequence[Content], *, marked: Iterable[int] = (), keep_duplicates: bool = False) -> Split:
    """The split of the texts. Their order only decides which of several equal texts is kept.

    About one group in `HELD_OUT_SHARE` is held out, at least one, and never the largest. A training text ends before a
    turn that is a held-out first prompt, a held-out text before a turn that occurs in training. If that leaves no
    held-out answer, because many prompts share few answers, prompts that share a first answer are held out together,
    provided that they are a small part of the data; otherwise only prompts are held out.

    Args:
        marked: indices of texts to hold out, with their whole groups; without any, the hash decides.
        keep_duplicates: keep all of several equal texts in training.

    Raises:
        DataError: nothing can be held out, or nothing is left to train on.
    """
    if len({content.group for content in contents}) < 2:
        # A single document is divided by its pieces.
        contents = [Content(content.first, content.exchanges) for content in contents]
    groups = {content.group for content in contents}
    if len(groups) < 2:
        raise DataError(
            f"{len(contents)} usable texts with {len(groups)} different prompts are too few: one prompt must be "
            "held out and another one trained on (case and spaces make no difference)"
        )
    chosen = {contents[index].group for index in marked}
    if chosen:
        split = _separate(contents, chosen, _firsts(contents, chosen), keep_duplicates)
    else:
        chosen = _by_hash(contents, groups)
        split = _separate(contents, chosen, _firsts(contents, chosen), keep_duplicates)
        if not (split.held_out and split.training) and (together := _with_one_answer(contents)):
            taken = {key for content in contents if content.group in together for key in content.exchanges[0]}
            split = _separate(contents, together, taken, keep_duplicates)
    if not split.training:
        raise DataError(
            f"all of the {len(contents)} usable texts are held out or begin with held-out turns: nothing is left to "
            "train on"
        )
    return split


def _by_hash(contents: Sequence[Content], groups: set[int]) -> set[int]:
    sizes = _sizes(contents, {group: group for group in groups})
    candidates = groups - {max(groups, key=lambda group: (sizes[group], group))}
    return {group for group in candidates if group < KEYS // HELD_OUT_SHARE} or {min(candidates)}


def _firsts(contents: Sequence[Content], chosen: set[int]) -> set[int]:
    return {content.first for content in contents if content.group in chosen}


def _separate(contents: Sequence[Content], chosen: set[int], taken: set[int], keep_duplicates: bool) -> Split:
    """The split that holds out the groups `chosen`; the keys `taken` must not occur in training."""
    held = [index for index, content in enumerate(contents) if content.group in chosen]
    trained = [index for index, content in enumerate(contents) if content.group not in chosen]
    known: set[Exchanges] = set()
    training, shared, copies = _before(contents, trained, taken, known, keep_duplicates)
    seen = _keys(contents, training)
    held_out, unmeasured, held_copies = _before(contents, held, seen, known, False)
    prompts: dict[int, int] = {}
    for index in held:
        if contents[index].first not in seen:
            prompts.setdefault(contents[index].group, index)
    return Split(
        training,
        held_out,
        list(prompts.values()),
        frozenset(_keys(contents, held_out) | {contents[index].first for index in prompts.values()}),
        len(contents),
        len({content.group for content in contents}),
        copies + held_copies,
        keep_duplicates,
        shared,
        unmeasured,
    )


def _before(
    contents: Sequence[Content], indices: Iterable[int], taken: set[int], known: set[Exchanges], keep_duplicates: bool
) -> tuple[list[Kept], int, int]:
    """The texts up to the first of `taken`, each once; the number that were cut, and the number of copies."""
    kept, cut, copies = [], 0, 0
    for index in indices:
        exchanges = contents[index].exchanges
        before = exchanges[: contents[index].before(taken)]
        cut += len(before) < len(exchanges)
        copies += before in known
        if before and (keep_duplicates or before not in known):
            kept.append(Kept(index, len(before)))
            known.add(before)
    return kept, cut, copies


def _keys(contents: Sequence[Content], kept: Iterable[Kept]) -> set[int]:
    """The keys of all kept exchanges."""
    return {key for text in kept for exchange in contents[text.index].exchanges[: text.exchanges] for key in exchange}


def _with_one_answer(contents: Sequence[Content]) -> set[int]:
    """The groups of the smallest set of prompts that shares no first answer with others; empty if it is large."""
    parents: dict[int, int] = {}

    def root(key: int) -> int:
        while (parent := parents.setdefault(key, key)) != key:
            key = parent
        return key

    for content in contents:
        for key in content.exchanges[0]:
            one, other = sorted((root(content.group), root(key)))
            parents[other] = one
    roots = {content.group: root(content.group) for content in contents}
    sizes = _sizes(contents, roots)
    smallest = min(sizes, key=lambda key: (sizes[key], key))
    if len(sizes) < 2 or sizes[smallest] * MIN_TEXTS_PER_HELD_OUT > sum(sizes.values()):
        return set()
    return {group for group, key in roots.items() if key == smallest}


def _sizes(contents: Sequence[Content], sets: dict[int, int]) -> dict[int, int]:
    """The number of different texts in each set of groups."""
    texts: defaultdict[int, set[Exchanges]] = defaultdict(set)
    for content in contents:
        texts[sets[content.group]].add(content.exchanges)
    return {key: len(different) for key, different in texts.items()}
