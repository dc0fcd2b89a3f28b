# SPDX-License-Identifier: Apache-2.0
"""How often drafts are accepted: by beams and depth, as it is published or was measured, and so for every node.

A tree of w beams reaches depth d with probability A(w, d), which `redrafter evaluate` measures and `training.json`
stores. The w-th best node of a depth is then accepted in A(w, d) − A(w − 1, d) of the steps, whatever the tree's size,
as more beams only add nodes. Between measured numbers of beams A grows with the logarithm of w.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redrafter_vllm.checkpoint.places import PROVENANCE_FILE, read_provenance
from redrafter_vllm.config import DraftingConfig
from redrafter_vllm.predict.trees import tree_text
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.messages import did_you_mean, shown

OWN_FILE = Path(__file__).with_name("acceptance.json")


class AcceptanceError(ValueError):
    """Acceptance that is unknown or described wrongly; the message says where and what is wrong."""


@dataclass(frozen=True)
class Acceptance:
    """Share of steps in which a draft token of depth 1, 2, … is accepted, by number of beams.

    Raises AcceptanceError unless shares are within 0 and 1, fall with depth and do not fall with beams.
    """

    by_depth: Mapping[int, tuple[float, ...]]  # beams ascending
    source: str

    def __post_init__(self) -> None:
        lengths = {len(shares) for shares in self.by_depth.values()}
        if len(lengths) != 1 or 0 in lengths or min(self.by_depth) < 1:
            raise AcceptanceError("acceptance needs shares for at least one number of beams, as many depths for each")
        table = np.array(list(self.by_depth.values()), dtype=np.float64)
        if not ((table >= 0) & (table <= 1)).all() or (np.diff(table, axis=1) > 0).any():
            raise AcceptanceError("shares of acceptance must be between 0 and 1 and not rise with depth")
        if list(self.by_depth) != sorted(self.by_depth) or (np.diff(table, axis=0) < 0).any():
            raise AcceptanceError("numbers of beams must ascend, and more of them cannot accept less")

    @property
    def length(self) -> int:
        """The greatest depth that is known."""
        return len(next(iter(self.by_depth.values())))

    @property
    def fewest_beams(self) -> int:
        """The smallest number of beams that is known."""
        return next(iter(self.by_depth))

    def at(self, beams: int) -> np.ndarray:
        """A(`beams`, ·) [length]. Beyond the greatest known number of beams nothing is added.

        Up to the smallest one each beam adds as much: how the shares are divided among these is not known.
        """
        known = np.log2(list(self.by_depth))
        table = np.array(list(self.by_depth.values()), dtype=np.float64)
        part = min(1.0, beams / self.fewest_beams)
        return part * np.array([np.interp(np.log2(beams), known, depth) for depth in table.T])

    def nodes(self, drafting: DraftingConfig) -> np.ndarray:
        """Survival of a tree's N nodes, best first. [N]

        Raises:
            AcceptanceError: The beams are longer, or fewer, than is known.
        """
        if drafting.beam_width < self.fewest_beams:
            raise AcceptanceError(
                f"{tree_text(drafting)}: acceptance is known from {self.fewest_beams} beams on ({self.source}); give "
                f"other trees, such as --tree {self.fewest_beams}x{drafting.beam_length}"
            )
        if drafting.beam_length > self.length:
            raise AcceptanceError(
                f"beams of {drafting.beam_length}: acceptance is known to depth {self.length} ({self.source})"
            )
        reached = np.array([self.at(width) for width in range(1, drafting.beam_width + 1)])[:, : drafting.beam_length]
        own = np.diff(reached, axis=0, prepend=0.0)  # [W, T]
        return np.sort(own, axis=None)[::-1][: drafting.num_speculative_tokens]


def find_acceptance(name: str) -> Acceptance:
    """By a name in `acceptance.json`, from a file with one of the same form, or from a drafter's `training.json`.

    Raises:
        AcceptanceError: There is none, or it is described wrongly.
    """
    own = known_acceptance()
    if name in own:
        return own[name]
    path = Path(name)
    if path.is_dir():
        return of_drafter(path)
    if path.is_file():
        return _described(_read(path), name)
    raise AcceptanceError(
        f"{shown(name)} is no known acceptance{did_you_mean(name, own)}: give {', '.join(own)}, a drafter's folder, or "
        "a JSON file"
    )


def known_acceptance() -> dict[str, Acceptance]:
    """Those of `acceptance.json` by name."""
    return {name: _described(found, f"{OWN_FILE.name}, {name}") for name, found in _read(OWN_FILE).items()}


def of_drafter(folder: Path) -> Acceptance:
    """What was measured behind the training of the drafter in `folder`.

    Raises:
        AcceptanceError: Nothing was.
    """
    measured = read_provenance(folder).get("held_out")
    shapes = measured if isinstance(measured, dict) else {}
    shares = {
        shape.partition("x")[0]: figures.get("acceptance_by_depth")
        for shape, figures in shapes.items()
        if isinstance(figures, dict)
    }
    if not shares:
        raise AcceptanceError(
            f"{folder / PROVENANCE_FILE} has no acceptance measured on held-out prompts: name another acceptance"
        )
    where = f"{folder / PROVENANCE_FILE}, held_out"
    return _described({"by_depth": shares, "source": where}, where)


def _described(described: Any, where: str) -> Acceptance:
    try:
        source = str(described.get("source", where))
        if "tokens_per_step" in described:
            length = described["length"]
            rates = {beams: _constant(rate, length) for beams, rate in described["tokens_per_step"].items()}
        else:
            rates = described["by_depth"]
        by_depth = {int(beams): tuple(float(share) for share in rates[beams]) for beams in sorted(rates, key=int)}
        return Acceptance(by_depth, source)
    except AcceptanceError as error:
        raise AcceptanceError(f"{where}: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise AcceptanceError(
            f'{where} must be an object with "by_depth", shares by number of beams, such as '
            '{"by_depth": {"1": [0.6, 0.4], "4": [0.7, 0.5]}}, or with "tokens_per_step" and "length"'
        ) from None


def _constant(tokens_per_step: float, length: int) -> list[float]:
    """Shares by depth with the same probability p at every depth: 1 + p + … + p^length is `tokens_per_step`."""
    if not 1 <= tokens_per_step <= 1 + length:
        raise AcceptanceError(f"beams of {length} draft tokens give 1 to {1 + length} tokens a step")
    low, high = 0.0, 1.0
    depths = np.arange(1, length + 1)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 1 + (middle**depths).sum() < tokens_per_step else (low, middle)
    return [float(share) for share in low**depths]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = strict_json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AcceptanceError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(found, dict):
        raise AcceptanceError(f"{file} holds no JSON object")
    return found
