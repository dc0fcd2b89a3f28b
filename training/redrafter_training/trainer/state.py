# SPDX-License-Identifier: Apache-2.0
"""The state that a training's next step depends on, to and from a file."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redrafter_training.distributed.context import TrainContext
from redrafter_training.trainer.optimizer import SplitOptimizer
from redrafter_training.utils.differences import differences
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.utils import strict_json

STATE_FILE = "state.pt"
INPUTS = {  # the inputs of a training (see `redrafter_training.run.inputs`), by the user's flags
    "target": "--target",
    "data": "--data",
    "chat_template": "--chat-template",
    "init_from": "--init-from",
    "folders": "--responses.folders",
}


class ResumeError(ValueError):
    """A checkpoint that this training cannot continue from."""


@dataclass(frozen=True)
class Best:
    """The drafter's weights at its best evaluation, on the CPU."""

    step: int
    weights: dict[str, Tensor]


@dataclass
class Progress:
    """Progress of a training. The data position is `step`, as each step uses one batch of the (repeatable) data."""

    step: int = 0
    seconds: float = 0.0
    history: list[list[float]] = field(default_factory=list)  # one row of figures per step
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)  # (step, named figures)
    # (step, named figures) of the log's entries: learning rate, gradient norm, tokens per second, epoch
    course: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    best: Best | None = None  # with early stopping


def capture(
    drafter: Drafter,
    optimizer: SplitOptimizer,
    progress: Progress,
    identity: Mapping[str, Any],
    context: TrainContext,
) -> dict[str, Any]:
    """The state to store. All processes must call this, as each has its own random state."""
    return {
        "drafter": drafter.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": progress.step,
        "seconds": progress.seconds,
        "history": torch.tensor(progress.history, dtype=torch.float64),
        "evaluations": progress.evaluations,
        "course": progress.course,
        "best": None if progress.best is None else (progress.best.step, progress.best.weights),
        "identity": strict_json.dumps(identity, sort_keys=True, default=str),
        "rng": context.gather(_random_state(context.device)),
    }


def write_state(state: Mapping[str, Any], directory: Path) -> None:
    torch.save(dict(state), directory / STATE_FILE)


def read_state(directory: Path, device: torch.device | str = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """A stored state with its weights on `device`; with `mmap` they are read when used.

    Raises:
        ResumeError: the file cannot be read.
    """
    try:
        return torch.load(directory / STATE_FILE, map_location=device, weights_only=True, mmap=mmap)
    except Exception as problem:  # torch.load raises many kinds of errors
        reason = str(problem).splitlines()[0] if str(problem) else type(problem).__name__
        raise ResumeError(f"{directory / STATE_FILE} cannot be read ({reason}): remove {directory}") from problem


def restore(
    state: Mapping[str, Any],
    drafter: Drafter,
    optimizer: SplitOptimizer,
    identity: Mapping[str, Any],
    context: TrainContext,
) -> Progress:
    """Restores a stored state into `drafter`, `optimizer` and the random number generators.

    Raises:
        ResumeError: the checkpoint belongs to another target, data or configuration.
    """
    check_identity(state, identity)
    drafter.load_state_dict(state["drafter"])
    optimizer.load_state_dict(state["optimizer"])
    if context.rank < len(state["rng"]):
        _set_random_state(state["rng"][context.rank], context.device)
    history = state["history"].tolist()
    # Checkpoints of earlier versions have neither the log's entries nor best weights.
    return Progress(
        state["step"],
        state["seconds"],
        history,
        _entries(state["evaluations"]),
        _entries(state.get("course", ())),
        stored_best(state),
    )


def stored_best(state: Mapping[str, Any]) -> Best | None:
    """The best weights in a stored state, if it was made with early stopping."""
    if (best := state.get("best")) is None:
        return None
    step, weights = best
    return Best(step, {name: tensor.cpu() for name, tensor in weights.items()})


def _entries(stored: Iterable[tuple[int, Mapping[str, float]]]) -> list[tuple[int, dict[str, float]]]:
    return [(int(step), dict(figures)) for step, figures in stored]


def check_identity(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises ResumeError unless a stored state belongs to the training of `identity`."""
    before, wanted = _identities(state, identity)
    made_from, given = before.pop("inputs", {}), wanted.pop("inputs", {})
    changed_inputs = [(flag, made_from.get(key), given.get(key)) for key, flag in INPUTS.items()]
    if inputs := [flag + _parts(old, new) for flag, old, new in changed_inputs if old != new]:
        raise ResumeError(
            f"the checkpoint of step {state['step']} was made with other contents of {', '.join(inputs)}: "
            "restore them, choose another --run-dir, or start over with --resume false"
        )
    if changed := differences(before | larger_budget(before, wanted), wanted):
        raise ResumeError(
            f"the checkpoint of step {state['step']} was made with other settings ({', '.join(changed)}): restore "
            "them, choose another --run-dir, or start over with --resume false"
        )


def _parts(old: Any, new: Any) -> str:
    """The parts of an input that differ, if its fingerprint has parts."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return ""
    return f" ({', '.join(sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key)))})"


def budget_growth(state: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` for each limit of the training of `identity` that is above that of a stored state."""
    before, wanted = _identities(state, identity)
    return differences(before, before | larger_budget(before, wanted))


def _identities(state: Mapping[str, Any], identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The identities of a stored state and of the training that continues it."""
    wanted = strict_json.loads(strict_json.dumps(identity, sort_keys=True, default=str))
    return strict_json.loads(state["identity"]), wanted


def larger_budget(before: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """`config` of `before` with the limits of `wanted` where those are higher, as a limit may be raised later.

    A limit of null means no limit.
    """
    config, wanted_config = before.get("config", {}), wanted.get("config", {})
    if "budget" not in config or "budget" not in wanted_config:
        return {}
    budget = wanted_config["budget"]
    limits = {
        key: budget.get(key, limit) if _above(budget.get(key, limit), limit) else limit
        for key, limit in config["budget"].items()
    }
    return {"config": {**config, "budget": limits}}


def _above(limit: float | None, other: float | None) -> bool:
    return other is not None and (limit is None or limit > other)


def _random_state(device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"].cpu())
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
