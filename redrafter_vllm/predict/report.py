# SPDX-License-Identifier: Apache-2.0
"""Predictions as a table for 80 columns, as JSON with everything that went in, and as a plot."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redrafter_vllm.bench.report import COLOURS, PLAIN_COLOUR
from redrafter_vllm.bench.tables import Grid, drawn, figure
from redrafter_vllm.checkpoint.config import tensor_shapes
from redrafter_vllm.predict.acceptance import Acceptance, known_acceptance
from redrafter_vllm.predict.gpu import Gpu
from redrafter_vllm.predict.prediction import Prediction, Setup
from redrafter_vllm.predict.shapes import SHAPES, as_dict, count
from redrafter_vllm.predict.trees import tree_text
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.atomic import atomic_file, write_text

NATURE = (
    "Prediction by a cost model, no measurement: docs/predicting.md says how far off it was where it could be checked."
)
PLAIN = "plain"


@dataclass(frozen=True)
class Report:
    """Predictions with what they were made from."""

    gpu: str
    target: str
    setup: Setup
    acceptance: Acceptance
    predictions: Sequence[Prediction]

    @property
    def title(self) -> str:
        setup = self.setup
        return f"{self.target} on {setup.parallel} x {self.gpu}, {setup.context:,} tokens of context, 16-bit"


def grid(report: Report) -> Grid:
    """All predictions; what does not fit in memory is marked."""
    columns = [
        "at a\ntime",
        "tree",
        "nodes",
        "tokens\na step",
        "target\nms",
        "draft-\ning ms",
        "tokens\nper s",
        "speed-\nup",
    ]
    rows = [
        [
            f"{found.batch}{'' if found.fits else ' *'}",
            name_of(found),
            figure(found.nodes, ".1f") if found.tree else figure(None),
            figure(found.tokens_per_step),
            figure(found.target_ms),
            figure(found.drafting_ms) if found.tree else figure(None),
            figure(found.tokens_per_second, ",.0f"),
            figure(found.speedup),
        ]
        for found in report.predictions
    ]
    return Grid(f"Predicted: {report.title}", columns, rows, left=2)


def remarks(report: Report) -> list[str]:
    """What went in, and how the table is to be read."""
    setup = report.setup
    parameters = count(tensor_shapes(setup.drafter))
    said = [
        NATURE,
        f"Drafter: {parameters / 1e6:,.0f} M parameters. Acceptance: {report.acceptance.source}.",
        "Nodes and tokens are those of one request, tokens per second those of all. Prompts are not included.",
    ]
    if (fewest := report.acceptance.fewest_beams) > 1:
        said.append(
            f"Acceptance is known from {fewest} beams on, not how {fewest} divide it: all have the same part here, so "
            "that trees cut to fewer nodes are better than predicted."
        )
    if any(found.tree is not None and found.tree.adaptive for found in report.predictions):
        said.append(
            "Trees with ~ follow the load, and drafting stops where it does not pay, if serving adapts (serving.md)."
        )
    if not all(found.fits for found in report.predictions):
        said.append("* Weights and caches of so many requests do not fit in the memory of these GPUs.")
    return said


def as_json(report: Report) -> str:
    """Everything, with the units in the names."""
    found = {
        "nature": NATURE,
        "target": {"name": report.target, **as_dict(report.setup.shape)},
        "drafter": as_dict(report.setup.drafter),
        "gpu": {"name": report.gpu, **asdict(report.setup.gpu)},
        "gpus": report.setup.parallel,
        "context": report.setup.context,
        "acceptance": {"source": report.acceptance.source, "by_depth": dict(report.acceptance.by_depth)},
        "predictions": [asdict(one) | {"tree": name_of(one)} for one in report.predictions],
    }
    return strict_json.dumps(found, indent=2) + "\n"


def write_json(report: Report, file: Path) -> None:
    write_text(file, as_json(report))


def write_plot(report: Report, file: Path) -> None:
    """Speed-up by batch size. Raises ValueError without matplotlib."""
    drawing = drawn(lambda axes: _draw(report, axes))
    if drawing is None:
        raise ValueError("a plot needs matplotlib: pip install matplotlib")
    with atomic_file(file) as temporary:
        drawing.savefig(temporary, format="png", dpi=120)


def _draw(report: Report, axes: Any) -> None:
    batches = list(dict.fromkeys(found.batch for found in report.predictions))
    names = list(dict.fromkeys(name_of(found) for found in report.predictions if found.tree))
    axes.axhline(1.0, color=PLAIN_COLOUR, linestyle="--", label=PLAIN)
    for number, name in enumerate(names):
        speedups = [found.speedup for found in report.predictions if name_of(found) == name]
        axes.plot(batches, speedups, marker="o", color=COLOURS[number % len(COLOURS)], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, list(map(str, batches)))
    axes.minorticks_off()
    axes.set(xlabel="requests at a time", ylabel="predicted speed-up", ylim=(0, None))
    axes.set_title(f"Predicted, not measured: {report.title}", fontsize="medium")
    axes.grid(alpha=0.3)
    axes.legend()


def name_of(found: Prediction) -> str:
    return tree_text(found.tree) if found.tree else PLAIN


def inputs(gpus: dict[str, Gpu]) -> list[Grid]:
    """What can be named: GPUs, targets and acceptances."""
    return [
        Grid(
            "GPUs: figures of data sheets",
            ["--gpu", "memory\nTB/s", "16-bit\nTFLOPS", "memory\nGB", "link\nGB/s"],
            [
                [name, *(f"{number:g}" for number in (gpu.bandwidth_tb_s, gpu.tflops, gpu.memory_gb, gpu.link_gb_s))]
                for name, gpu in gpus.items()
            ],
        ),
        Grid(
            "Targets; or a folder with a config.json",
            ["--target", "parameters", "layers", "hidden", "heads", "KV\nheads", "tokens"],
            [
                [
                    name,
                    f"{shape.num_parameters / 1e9:.2f} B",
                    str(shape.num_hidden_layers),
                    f"{shape.hidden_size:,}",
                    str(shape.num_attention_heads),
                    str(shape.num_key_value_heads),
                    f"{shape.vocab_size:,}",
                ]
                for name, shape in SHAPES.items()
            ],
        ),
        Grid(
            "Acceptance; or a drafter's folder, or a JSON file",
            ["--acceptance", "beams known", "length"],
            [
                [name, ", ".join(map(str, found.by_depth)), str(found.length)]
                for name, found in known_acceptance().items()
            ],
        ),
    ]


def sources(gpus: dict[str, Gpu]) -> list[str]:
    """Where these figures are from."""
    return [f"{name}: {found.source}" for name, found in (gpus | known_acceptance()).items()]
