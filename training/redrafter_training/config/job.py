# SPDX-License-Identifier: Apache-2.0
"""Options of one training apart from the recipe: target, data, machines, paths."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from redrafter_training.config.recipe import DistillConfig
from redrafter_vllm.checkpoint.locate import WORD, registry_dir
from redrafter_vllm.utils.paths import PlaceError, user_path, user_place


@dataclass(frozen=True)
class Job:
    """Options of one training, from the target to the exported drafter.

    Attributes:
        target: folder or hub name of the frozen target.
        data: `stdlib` for the Python standard library's sources, a folder of Python files, a JSON, JSONL, Parquet or
            text file of conversations, a folder that `datasets` can load, or the name of a data set on the hub.
        data_config: configuration ("subset") of a data set.
        data_split: split of a data set to train on (default: the only one, or train).
        held_out_split: split of the data set to measure on; texts that the other split shares with it are not trained
            on (default: a part of data_split is held out).
        chat_template: `vicuna`, or a file of Jinja source (default: the tokenizer's own).
        chat_template_kwargs: variables for the chat template, as JSON: {"enable_thinking": false} for instance.
        duplicates: drop trains on one of several texts with the same content, keep on all of them.
        evaluation_prompts: drop leaves out conversations with prompts of MT-Bench and Spec-Bench, which drafters are
            measured on; keep trains on them.
        out: folder for the drafter (default: <target>/redrafter for a target on disk, else the registry).
        ingest: ray reads and tokenises conversations through Ray Data, direct does it in each process; auto uses ray
            for several workers, a cluster or a large file.
        run_dir: folder for checkpoints, logs and plots, on storage that all machines share (default: <out>.run).
        init_from: folder of a drafter to start from instead of a new one; its shape replaces the recipe's, and keys
            with another shape are an error, but for a higher `num_draft_layers`, which adds residual blocks.
        num_workers: processes to train with, or an elastic range [min, max]; above 1 they are Ray workers.
        ray_address: cluster to use (auto: the one this machine belongs to); uses Ray even for one worker.
        max_failures: how often Ray may restart the workers from the last checkpoint.
        device: cpu, cuda, or auto for cuda where there is one.
        target_dtype: dtype of the target's computation; auto is bfloat16 on cuda, and on a CPU for a target stored in
            it if the processor has instructions for it, else float32.
        trust_remote_code: run the code in the target's or tokenizer's repository.
        target_quantization: weights of the target's layers in 8 or 4 bits (bitsandbytes); head and embedding are not
            quantised.
        target_gpus: GPUs per worker that the target's layers are spread over.
        hidden_cache: folder for the target's hidden states, computed once instead of in every step, on storage that
            all machines share.
        resume: continue from the last checkpoint in the run's folder; false starts over.
        overwrite: replace a drafter that is already in out; a drafter from the same run folder is always replaced.
        evaluate: measure simulated tokens per step on held-out prompts at the end.
        evaluate_every: steps between evaluations by depth.
        evaluate_windows: held-out windows per evaluation.
        patience: stop after this many evaluations in a row without a better chain_estimate on the held-out windows, and
            export the drafter of the best evaluation (0: train to the end and export the last one).
        checkpoint_every: steps between checkpoints.
        log_every: steps between log entries.
        wandb: log to Weights & Biases as well as to TensorBoard's files; its own variables configure it
            (WANDB_PROJECT, WANDB_MODE).
        mlflow: log to MLflow, too (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME).
        push_to_hub: repository on the Hugging Face hub, `owner/name`, that the drafter is uploaded to with its card.
        hub_private: make that repository private if it is new.
        max_rise: stop when the running loss exceeds this multiple of its lowest value.
        dry_run: print the resolved plan and stop.
    """

    target: str
    data: str
    data_config: str | None = None
    data_split: str | None = None
    held_out_split: str | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    duplicates: Literal["drop", "keep"] = "drop"
    evaluation_prompts: Literal["drop", "keep"] = "drop"
    ingest: Literal["auto", "ray", "direct"] = "auto"
    out: Path | None = None
    run_dir: Path | None = None
    init_from: Path | None = None
    num_workers: int | tuple[int, int] = 1
    ray_address: str | None = None
    max_failures: int = 3
    device: Literal["auto", "cpu", "cuda"] = "auto"
    target_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    target_quantization: Literal["none", "8bit", "4bit"] = "none"
    target_gpus: int = 1
    hidden_cache: Path | None = None
    resume: bool = True
    overwrite: bool = False
    evaluate: bool = True
    evaluate_every: int = 200
    evaluate_windows: int = 16
    patience: int = 0
    checkpoint_every: int = 200
    log_every: int = 10
    wandb: bool = False
    mlflow: bool = False
    push_to_hub: str | None = None
    hub_private: bool = False
    max_rise: float = 3.0
    dry_run: bool = False

    def __post_init__(self) -> None:
        expand_places(self, "target", "data", "chat_template", "out", "run_dir", "init_from", "hidden_cache")
        min_workers, max_workers = self.workers
        if not 1 <= min_workers <= max_workers:
            raise ValueError(f"num_workers must be at least 1, or a range [min, max], got {self.num_workers}")
        counts = ("evaluate_every", "patience", "checkpoint_every", "log_every", "max_failures")
        if negative := [name for name in counts if getattr(self, name) < 0]:
            raise ValueError(f"{negative[0]} must not be negative, got {getattr(self, negative[0])}")
        if self.patience and not self.evaluate_every:
            raise ValueError("patience counts evaluations during the training, of which evaluate_every 0 makes none")
        if self.hub_private and self.push_to_hub is None:
            raise ValueError("hub_private is about the repository of push_to_hub, which is not given")
        if self.target_gpus < 1:
            raise ValueError(f"target_gpus must be at least 1, got {self.target_gpus}")
        if self.evaluate_windows < 1:
            raise ValueError(f"evaluate_windows must be at least 1, got {self.evaluate_windows}")
        if not self.max_rise > 1:
            raise ValueError(f"max_rise must be above 1, got {self.max_rise}")

    @property
    def workers(self) -> tuple[int, int]:
        """Minimum and maximum number of workers."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers

    @property
    def on_ray(self) -> bool:
        return self.workers[1] > 1 or self.ray_address is not None

    @property
    def out_dir(self) -> Path:
        """The drafter's folder; by default the one where serving looks first."""
        if self.out is not None:
            return self.out
        folder = Path(self.target)
        return folder / WORD if folder.is_dir() else registry_dir(self.target)

    @property
    def run_folder(self) -> Path:
        out = self.out_dir
        if out.name in ("", ".."):
            out = out.resolve()
        return self.run_dir or out.with_name(f"{out.name}.run")

    @property
    def checkpoints(self) -> Path:
        return (self.run_folder / "checkpoints").resolve()

    def absolute(self) -> "Job":
        """The job with absolute paths, for a process that runs in another folder."""
        return replace(
            self,
            target=absolute_place(self.target),
            data=absolute_place(self.data),
            chat_template=self.chat_template and absolute_place(self.chat_template),
            out=self.out_dir.absolute(),
            run_dir=self.run_folder.absolute(),
            init_from=self.init_from and self.init_from.absolute(),
            hidden_cache=self.hidden_cache and self.hidden_cache.absolute(),
        )

    @property
    def choices(self) -> dict[str, Any]:
        """The options for data set and chat template that differ from their defaults."""
        chosen = {
            "data_config": self.data_config,
            "data_split": self.data_split,
            "held_out_split": self.held_out_split,
            "chat_template_kwargs": self.chat_template_kwargs,
            "evaluation_prompts": self.evaluation_prompts if self.evaluation_prompts != "drop" else None,
        }
        return {key: value for key, value in chosen.items() if value}

    def identity(self, config: DistillConfig) -> dict[str, Any]:
        """What must be equal for a checkpoint to be continued, besides the inputs (`redrafter_training.run.inputs`)."""
        responses = replace(config.responses, folders=())
        return {
            **self.choices,
            "duplicates": self.duplicates,
            "target_dtype": self.target_dtype,
            "target_quantization": self.target_quantization,
            "hidden_cache": self.hidden_cache is not None,
            "config": asdict(replace(config, responses=responses)),
        }


def expand_places(holder: Any, *names: str) -> None:
    """Expands `~` in those fields of a frozen dataclass that hold paths or names on the hub.

    Raises:
        PlaceError: a path is empty, or there is no such home folder.
    """
    for name in names:
        place = getattr(holder, name)
        if place is None:
            continue
        try:
            expanded = user_path(place) if isinstance(place, Path) else user_place(place)
        except PlaceError as problem:
            raise PlaceError(f"{name}: {problem}") from None
        object.__setattr__(holder, name, expanded)


def absolute_place(place: str) -> str:
    """An existing path made absolute; anything else, such as a model's name on the hub, unchanged."""
    path = Path(place).expanduser()
    return str(path.absolute()) if path.exists() else place


def check_rows(job: Job, config: DistillConfig) -> None:
    """Raises ValueError when a worker would get no row of a batch."""
    if config.batch_size < job.workers[1]:
        raise ValueError(
            f"batch_size counts the rows of all workers together: {config.batch_size} leave some of "
            f"{job.workers[1]} workers without any"
        )
