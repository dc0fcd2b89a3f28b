# SPDX-License-Identifier: Apache-2.0
"""Whether nodes are accepted as often as estimated: by the drafter alone, and as adaptive serving corrects it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from redrafter_training.target.model import TargetModel
from redrafter_training.trainer.acceptance import Drafting, drafted_everywhere, graded_nodes
from redrafter_vllm.adaptive.survival import Coefficients, SurvivalEstimator
from redrafter_vllm.drafting.beam_search import Beams
from redrafter_vllm.drafting.buffers import BatchDrafts
from redrafter_vllm.drafting.tree import DraftTree
from redrafter_vllm.model.interface import DrafterInterface
from redrafter_vllm.ops.tree_verify import Walk

BINS = 10


@dataclass(frozen=True)
class Estimates:
    """Nodes of the trees of all steps, each [n]: estimated survival, and whether the walk accepted it."""

    drafter: Tensor
    adapted: Tensor
    is_accepted: Tensor


@dataclass(frozen=True)
class Bin:
    """Nodes of similar estimated survival."""

    count: int
    estimated: float  # mean
    accepted: float  # share


@torch.inference_mode()
def estimate_steps(
    target: TargetModel,
    drafter: DrafterInterface,
    texts: Sequence[tuple[Tensor, int]],
    drafting: Drafting,
    start: Coefficients | None,
) -> Estimates:
    """Estimates of the steps in which `texts` would be decoded one after the other, each made before it is graded.

    Each text is a prompt with its continuation [n], and the prompt's length. `start` are the stored coefficients.
    """
    sizes = 1, drafting.max_nodes, drafting.beam_length
    estimator = SurvivalEstimator(*sizes, target.device, start, copies=drafting.prompt_lookup)
    rows = torch.zeros(1, dtype=torch.int64, device=target.device)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for text, prompt_length in texts:
        estimator.open(0)
        for beams, future in _steps(target, drafter, text, prompt_length, drafting):
            tree = DraftTree.from_beams(beams, drafting.max_nodes, None, estimator.rank(beams, rows))
            estimator.store(rows, tree, tree.num_nodes, torch.empty_like(tree.log_probs))
            _, is_accepted = graded_nodes(tree, future)
            own = beams.log_probs.flatten(1).gather(1, tree.beams)
            count = int(tree.num_nodes)
            found.append((own[0, :count].exp(), tree.log_probs[0, :count].exp(), is_accepted[0, :count]))
            estimator.grade(rows, *_verified(tree, is_accepted, drafting.max_depth))
    drafter_own, adapted, accepted = (torch.cat(column) for column in zip(*found, strict=True))
    return Estimates(drafter_own, adapted, accepted)


def _steps(
    target: TargetModel, drafter: DrafterInterface, text: Tensor, prompt_length: int, drafting: Drafting
) -> Iterator[tuple[Beams, Tensor]]:
    """Beams and future of each step that decoding takes; see `acceptance.count_steps`."""
    if len(text) - prompt_length < 2:
        return
    everywhere, futures = drafted_everywhere(
        target, drafter, target.hidden(text[None])[0], text, prompt_length, drafting
    )
    root = 0
    while root < len(futures) - 1:
        own = slice(root, root + 1)
        beams = Beams(everywhere.tokens[own], everywhere.parents[own], everywhere.log_probs[own])
        yield beams, futures[own]
        tree = DraftTree.from_beams(beams, drafting.max_nodes)
        root += 1 + int((tree.depths * graded_nodes(tree, futures[own])[1]).amax())


def _verified(tree: DraftTree, is_accepted: Tensor, max_depth: int) -> tuple[BatchDrafts, Walk]:
    """A step that verifies the whole tree, as serving would describe it."""
    path = torch.full((1, max_depth), -1, dtype=torch.int64, device=tree.tokens.device)
    nodes = is_accepted[0].nonzero()[:, 0]
    path[0, tree.depths[0, nodes] - 1] = nodes
    valid = torch.arange(tree.tokens.shape[1], device=path.device) < tree.num_nodes[:, None]
    nothing = torch.zeros(0, device=path.device)
    return BatchDrafts(tree.tokens, tree.parents, tree.depths, nothing, valid), Walk(nothing, path, nothing, nothing)


def reliability(estimated: Tensor, is_accepted: Tensor, bins: int = BINS) -> list[Bin]:
    """The nodes by estimated survival, in `bins` equal parts of 0 to 1; parts without a node are left out."""
    place = (estimated * bins).long().clamp(max=bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        if count := int(inside.sum()):
            found.append(Bin(count, float(estimated[inside].mean()), float(is_accepted[inside].float().mean())))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean distance of estimate and truth, over all nodes."""
    return sum(each.count * abs(each.estimated - each.accepted) for each in bins) / sum(each.count for each in bins)


def plot_reliability(curves: Mapping[str, Sequence[Bin]], path: Path) -> None:
    """Writes a PNG: share accepted over estimated survival, a line for each name.

    Raises ImportError where matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="as often as estimated")
    for name, bins in curves.items():
        label = f"{name}: error {calibration_error(bins):.3f}"
        axes.plot([each.estimated for each in bins], [each.accepted for each in bins], "o-", markersize=4, label=label)
    axes.set(xlabel="estimated survival of a node", ylabel="share of the nodes accepted", xlim=(0, 1), ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
