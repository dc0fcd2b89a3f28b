# SPDX-License-Identifier: Apache-2.0
"""What is kept away from training: decided by what texts say, not by where they stand.

Texts are compared by the keys of their normalised turns, so that capitals, spaces and spellings of one character make
no difference. No turn of a text that is measured on stands in a text that is trained on, and the other way round.

A group of texts, those with one first prompt or the pieces of one document, is held out as a whole, by the hash of
what it has in common. So a record is on the same side in any order, with any number of workers and, but for data too
small or too uniform to hold out anything else, whatever stands beside it.
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass

from redrafter_training.data.conversations import Conversation, Turn
from redrafter_training.data.report import DataError

Exchanges = tuple[tuple[int, ...], ...]

HELD_OUT_SHARE = 20  # one group in so many
KEYS = 1 << 63
MOST_OF_TEXTS = 4  # at most one text in so many is held out where prompts share their answers


def normalised(text: str) -> str:
    """The text without what makes no other text of it: compatibility forms, case, kind and number of spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> int:
    """The same for texts that are the same when normalised; in 0..2^63-1, evenly."""
    return int.from_bytes(hashlib.blake2b(normalised(text).encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Content:
    """What one text says, in keys.

    `exchanges` stand one after the other: a prompt with its answer, a prompt alone that is still to be answered, or a
    piece of plain text. A text can be cut behind any of them.
    """

    group: int  # of the first prompt, or of the whole document
    exchanges: Exchanges

    @property
    def first(self) -> int:
        """The first prompt, or the piece."""
        return self.exchanges[0][0]

    def before(self, taken: Set[int]) -> int:
        """How many exchanges there are before the first one that holds one of `taken`."""
        for number, exchange in enumerate(self.exchanges):
            if any(key in taken for key in exchange):
                return number
        return len(self.exchanges)


@dataclass(frozen=True)
class Kept:
    """A text, by its place among the given ones, and how many of its exchanges are kept."""

    index: int
    exchanges: int


@dataclass(frozen=True)
class Split:
    """Which texts are trained on, which are measured on, and why some are neither."""

    training: list[Kept]
    held_out: list[Kept]
    prompts: list[int]  # one text for each held-out prompt or document, whose beginning no text in training says
    keys: frozenset[int]  # of all that is held out
    texts: int
    groups: int
    duplicates: int  # texts that say the same as another one
    keeps_duplicates: bool
    shared: int  # texts in training that are cut or left out, for a turn that is held out
    unmeasured: int  # held-out texts that are cut or left out, for a turn that is trained on

    def facts(self) -> dict[str, object]:
        """For the record."""
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
            f"{self.texts:,} texts with {self.groups:,} different first prompts or documents; {self.duplicates:,} say "
            f"the same as another one and are {'kept' if self.keeps_duplicates else 'left out'}",
            f"held out: {len(self.prompts):,} prompts or documents with {len(self.held_out):,} texts; "
            f"training: {len(self.training):,} texts",
        ]
        if self.shared:
            lines.append(f"{self.shared:,} texts for training are cut or left out: they say what is held out")
        if self.unmeasured:
            lines.append(f"{self.unmeasured:,} held-out texts are cut or left out: they say what is trained on")
        if not self.held_out:
            lines.append("every held-out answer is trained on, too: no held-out loss can be measured")
        return "\n".join(lines)


def content_of(conversation: Conversation, *, answered: bool = True) -> Content:
    """What a conversation says; with `answered` false its answers, which are to be replaced, do not count."""
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
    """Each answered turn of the user with its answer."""
    spoken = [turn for turn in conversation.turns if turn.role != "system"]
    return list(zip(spoken[::2], spoken[1::2], strict=False))


def divide(contents: Sequence[Content], *, marked: Iterable[int] = (), keep_duplicates: bool = False) -> Split:
    """The split of the texts. The order of the texts decides only which of several equal ones stands for them.

    Of the groups about one in `HELD_OUT_SHARE` is held out, at least one, and never the largest. A text in training
    ends before a turn that is a held-out first prompt, a held-out one before a turn that is trained on. If that leaves
    no held-out answer at all, since few answers are given to many prompts, prompts that share a first answer are held
    out together, provided that they are a small part of the data; else only prompts are held out.

    Args:
        marked: texts that are to be held out, with all of their group; the hash decides where there are none.
        keep_duplicates: keep all of several equal texts in training.

    Raises:
        DataError: nothing can be held out, or nothing would be left to train on.
    """
    if len({content.group for content in contents}) < 2:
        # A single document is divided by its pieces.
        contents = [Content(content.first, content.exchanges) for content in contents]
    groups = {content.group for content in contents}
    if len(groups) < 2:
        raise DataError(
            f"{len(contents)} usable texts with {len(groups)} different prompts are too little: one prompt must be "
            "held out and another one trained on (case and spaces make no difference)"
        )
    chosen = {contents[index].group for index in marked}
    if chosen:
        split = _separate(contents, chosen, _firsts(contents, chosen), keep_duplicates)
    else:
        chosen = _by_hash(contents, groups)
        split = _separate(contents, chosen, _firsts(contents, chosen), keep_duplicates)
        if not (split.held_out and split.training) and (together := _with_one_answer(contents)):
            said = {key for content in contents if content.group in together for key in content.exchanges[0]}
            split = _separate(contents, together, said, keep_duplicates)
    if not split.training:
        raise DataError(
            f"of {len(contents)} usable texts none says something else than the held-out ones: nothing is left to "
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
    """The split with the groups `chosen` held out, of which `taken` must not be trained on."""
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
    """The texts up to the first of `taken`, each once; how many were cut by that, and how many were copies."""
    kept, cut, copies = [], 0, 0
    for index in indices:
        exchanges = contents[index].exchanges
        said = exchanges[: contents[index].before(taken)]
        cut += len(said) < len(exchanges)
        copies += said in known
        if said and (keep_duplicates or said not in known):
            kept.append(Kept(index, len(said)))
            known.add(said)
    return kept, cut, copies


def _keys(contents: Sequence[Content], kept: Iterable[Kept]) -> set[int]:
    """All that is said in what is kept."""
    return {key for text in kept for exchange in contents[text.index].exchanges[: text.exchanges] for key in exchange}


def _with_one_answer(contents: Sequence[Content]) -> set[int]:
    """The groups of the smallest set of prompts that shares no first answer with any other; none if it is large."""
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
    if len(sizes) < 2 or sizes[smallest] * MOST_OF_TEXTS > sum(sizes.values()):
        return set()
    return {group for group, key in roots.items() if key == smallest}


def _sizes(contents: Sequence[Content], sets: dict[int, int]) -> dict[int, int]:
    """Different texts of each set of groups."""
    texts: defaultdict[int, set[Exchanges]] = defaultdict(set)
    for content in contents:
        texts[sets[content.group]].add(content.exchanges)
    return {key: len(said) for key, said in texts.items()}
