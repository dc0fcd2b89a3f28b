# SPDX-License-Identifier: Apache-2.0
"""The report of a benchmark: tables for a terminal of 80 columns and as Markdown, plots, a page of HTML, JSON."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redrafter_vllm.bench.memory import GIB
from redrafter_vllm.bench.statistics import CONFIDENCE
from redrafter_vllm.bench.tables import DEPTHS, Grid, drawn, figure
from redrafter_vllm.utils import html_page, strict_json
from redrafter_vllm.utils.atomic import atomic_file, write_text

PLAIN_COLOUR, COLOURS = "#5b6577", ("#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#ff7f0e", "#17becf", "#8c564b")
AT_A_TIME = ["at a\ntime", "configuration"]
MEASURES = {"ttft": "first\ntoken", "tpot": "each further\ntoken", "latency": "whole\nrequest"}

# The second column of these tables has names.
_STYLE = ".named .figures td:nth-child(2), .named .figures th:nth-child(2) { text-align: left; }"

Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The figures of a benchmark with what was run: `settings`, `versions`, `hardware`, `memory`, `command`."""

    run: Mapping[str, Any]
    rows: Sequence[Row]
    rounds: int

    @property
    def settings(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.run["settings"]
        return found

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(row["configuration"] for row in self.rows))

    @property
    def concurrency(self) -> list[int | str]:
        """Loads: a number of requests at a time, or the name of a ramp."""
        return list(dict.fromkeys(row["concurrency"] for row in self.rows))

    @property
    def numbers(self) -> list[int]:
        """The loads that are numbers."""
        return [load for load in self.concurrency if isinstance(load, int)]

    @property
    def alone(self) -> list[Row]:
        """The rows of the lowest load."""
        return [row for row in self.rows if row["concurrency"] == self.concurrency[0]]

    @property
    def colours(self) -> dict[str, str]:
        others = self.names[1:]
        return {self.names[0]: PLAIN_COLOUR} | {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(others)}

    @property
    def title(self) -> str:
        settings = self.settings
        heat = f"temperature {settings['temperature']:g}" if settings["temperature"] else "greedy"
        return (
            f"{Path(settings['target']).name}, {settings['mode']}, {Path(settings['data']).name}, {heat}, "
            f"{'1 round' if self.rounds == 1 else f'{self.rounds} rounds'}"
        )


def grids(report: Report) -> list[Grid]:
    """All tables."""
    return [speeds(report), drafts(report), times(report), acceptance(report), steps(report), memory(report)]


def speeds(report: Report) -> Grid:
    columns = [
        *AT_A_TIME,
        "tokens\nper s",
        "speed-\nup",
        "from – to",
        "tokens\na step",
        "same\ntext",
    ]
    rows = [
        [
            *_labels(report, row),
            figure(row["tokens_per_second"]["median"], ".1f"),
            figure(row["speedup"]["median"]),
            _interval(row["speedup"]),
            figure(row["tokens_per_step"]),
            f"{row['same_requests']}/{row['requests']}",
        ]
        for row in report.rows
    ]
    return Grid("Speed: medians over rounds", columns, rows, left=2)


def drafts(report: Report) -> Grid:
    columns = [*AT_A_TIME, "nodes\nverified", "drafts\naccepted", "steps without\na round"]
    rows = []
    for row in report.rows:
        nodes, per_step, skipped = row["nodes_per_step"], row["tokens_per_step"], row["skipped"]
        accepted = None if nodes is None or per_step is None else per_step - 1
        share = figure(None if skipped is None else 100 * skipped, ".0f")
        rows.append(
            [*_labels(report, row), figure(nodes), figure(accepted), share if skipped is None else f"{share} %"]
        )
    return Grid("Drafts of a request's mean step", columns, rows, left=2)


def times(report: Report) -> Grid:
    columns = [*AT_A_TIME, *MEASURES.values()]
    rows = [[*_labels(report, row), *(_percentiles(row[measure]) for measure in MEASURES)] for row in report.rows]
    return Grid("Milliseconds of requests, percentiles 50, 90 and 99", columns, rows, left=2)


def acceptance(report: Report) -> Grid:
    depth = min(DEPTHS, max(len(row["acceptance"]) for row in report.alone))
    rows = [
        [row["configuration"], *(figure(value) for value in [*row["acceptance"], *[None] * depth][:depth])]
        for row in report.alone
    ]
    title = f"Acceptance by depth, {report.concurrency[0]} at a time"
    return Grid(title, ["configuration", *map(str, range(1, depth + 1))], rows)


def steps(report: Report) -> Grid:
    timed = [row for row in report.alone if row["milliseconds"]]
    phases = list(dict.fromkeys(phase for row in timed for phase in row["milliseconds"]))
    phases.sort(key=lambda phase: -max(row["milliseconds"].get(phase, 0.0) for row in timed))
    rows = [[phase, *(figure(row["milliseconds"].get(phase)) for row in timed)] for phase in phases]
    rows.append(["all", *(figure(sum(row["milliseconds"].values())) for row in timed)])
    title = f"Milliseconds of a step, {report.concurrency[0]} at a time"
    return Grid(title, ["phase", *(row["configuration"] for row in timed)], rows)


def memory(report: Report) -> Grid:
    most = {
        name: max(row["memory"] or 0 for row in report.rows if row["configuration"] == name) for name in report.names
    }
    rows = [[name, figure(taken / GIB if taken else None)] for name, taken in most.items()]
    return Grid("Memory", ["configuration", "GiB"], rows)


def remarks(report: Report) -> list[str]:
    """How the figures are to be read."""
    said = []
    coverage = report.rows[0]["speedup"]["coverage"]
    if coverage is None:
        said.append("One round gives no interval: take at least 6 rounds for 95 %.")
    else:
        more = "" if coverage >= CONFIDENCE else "; 6 rounds would give 97 %"
        sure = f"{100 * coverage:.0f} %"
        said.append(f"From – to holds the median speed-up over rounds with a confidence of {sure}{more}.")
    said.append(
        f"A speed-up is a quotient of two turns of one round, of {report.names[0]} and the other, on the same prompts, "
        "prompts included."
    )
    said.append(
        "Nodes are the draft tokens that the target verifies. Where drafts would take longer than they save, adaptive "
        "trees verify few, and before some steps draw no round at all."
    )
    said.append(
        "Same text counts the requests whose output is that of plain vLLM beside it, in the round with the fewest; "
        "below float32, batches of other sizes round differently."
    )
    said.append(
        f"Acceptance is the part of the steps that accept a draft of that depth. Memory is {report.run['memory']}."
    )
    return said


PLOTS: dict[str, str] = {
    "speedup": "Speed-up over plain vLLM by requests at a time, with its interval",
    "acceptance": "Part of the steps that accept a draft of each depth",
    "step-time": "Milliseconds of a step by what they are spent on",
}


def drawings(report: Report) -> dict[str, Callable[[Any], None]]:
    """How each plot is drawn on matplotlib's axes; those that would be empty are left out."""
    found: dict[str, Callable[[Any], None]] = {}
    if report.numbers:
        found["speedup"] = lambda axes: draw_speedup(report, axes)
    if any(row["acceptance"] for row in report.alone):
        found["acceptance"] = lambda axes: draw_acceptance(report, axes)
    if any(row["milliseconds"] for row in report.rows):
        found["step-time"] = lambda axes: draw_steps(report, axes)
    return found


def draw_speedup(report: Report, axes: Any) -> None:
    axes.axhline(1.0, color=PLAIN_COLOUR, linestyle="--", label=report.names[0])
    for name in report.names[1:]:
        own = [row for row in report.rows if row["configuration"] == name and row["concurrency"] in report.numbers]
        middle = [row["speedup"]["median"] for row in own]
        below = [m - (row["speedup"]["low"] or m) for m, row in zip(middle, own, strict=True)]
        above = [(row["speedup"]["high"] or m) - m for m, row in zip(middle, own, strict=True)]
        places = [row["concurrency"] for row in own]
        axes.errorbar(places, middle, [below, above], marker="o", capsize=4, color=report.colours[name], label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(report.numbers, map(str, report.numbers))
    axes.minorticks_off()
    axes.set(xlabel="requests at a time", ylabel="speed-up", title=report.title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()


def draw_acceptance(report: Report, axes: Any) -> None:
    for row in report.alone:
        if row["acceptance"]:
            depths = range(1, len(row["acceptance"]) + 1)
            colour = report.colours[row["configuration"]]
            axes.plot(depths, row["acceptance"], marker="o", color=colour, label=row["configuration"])
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="depth of the draft", ylabel="part of the steps", title=report.title, ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()


def draw_steps(report: Report, axes: Any) -> None:
    """A bar for each configuration under the lowest and the highest load whose steps were timed."""
    timed = [row for row in report.rows if row["milliseconds"]]
    rows = [row for row in timed if row["concurrency"] in (timed[0]["concurrency"], timed[-1]["concurrency"])]
    labels = [f"{row['configuration']}, {row['concurrency']} at a time" for row in rows]
    left = [0.0] * len(rows)
    for index, phase in enumerate(dict.fromkeys(phase for row in rows for phase in row["milliseconds"])):
        widths = [row["milliseconds"].get(phase, 0.0) for row in rows]
        axes.barh(labels, widths, left=left, label=phase, color=f"C{index % 10}")
        left = [begin + width for begin, width in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds", title=report.title)
    axes.legend(fontsize=8)


def markdown(report: Report, images: Sequence[str]) -> str:
    """Tables, remarks, links to the images, and what was run."""
    parts = [f"# {report.title}", *(grid.markdown() for grid in grids(report))]
    parts.append("\n".join(f"- {line}" for line in remarks(report)))
    parts += [f"![{PLOTS[Path(name).stem]}]({name})" for name in images]
    parts.append("\n".join(f"- {label}: {text}" for label, text in facts(report).items()))
    parts.append(f"```\n{report.run['command']}\n```")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def facts(report: Report) -> dict[str, str]:
    """What was run, by label."""
    settings = report.settings
    versions = ", ".join(f"{name} {version}" for name, version in report.run["versions"].items())
    configurations = {
        name: "no speculation" if spec is None else strict_json.dumps(spec)
        for name, spec in settings["configurations"].items()
    }
    return {
        "machine": report.run["hardware"],
        "versions": versions,
        "target": settings["target"],
        "date": report.run["date"],
        "requests": f"{report.alone[0]['requests']} a turn or as many as run at a time, prompts of at most "
        f"{settings['prompt_tokens']} tokens, {settings['max_tokens']} new tokens",
        "options of vLLM": " ".join(settings["options"]) or "none",
        **configurations,
    }


def page(report: Report) -> str:
    """The report as HTML that needs no other file. Without matplotlib it has no drawings."""
    parts = []
    pictures = {
        name: html_page.drawing(picture, PLOTS[name])
        for name, draw in drawings(report).items()
        if (picture := drawn(draw, (9, 4.5))) is not None
    }
    places = {"speedup": 0, "acceptance": 3, "step-time": 4}  # in the order of `grids`
    for index, grid in enumerate(grids(report)):
        parts.append(html_page.heading(grid.title))
        parts += [picture for name, picture in pictures.items() if places[name] == index]
        table = html_page.figures_table(grid.plain_columns, grid.rows)
        parts.append(f'<div class="named">{table}</div>' if grid.left == 2 else table)
        if index == 0:
            parts += [html_page.paragraph(line, note=True) for line in remarks(report)]
    parts += [html_page.heading("What was run"), html_page.facts_table(facts(report))]
    parts.append(html_page.preformatted(str(report.run["command"])))
    return html_page.page(f"redrafter bench: {report.title}", parts, style=_STYLE)


def store(report: Report, folder: Path) -> list[Path]:
    """Writes results.json, report.md, report.html and, with matplotlib, the plots; returns their paths."""
    found = {**report.run, "rounds": report.rounds, "results": report.rows}
    write_text(folder / "results.json", strict_json.dumps(found, indent=2) + "\n")
    images = []
    for name, draw in drawings(report).items():
        if (picture := drawn(draw)) is not None:
            image = folder / f"{name}.png"
            with atomic_file(image) as temporary:
                picture.savefig(temporary, dpi=120, format="png")
            images.append(image)
    write_text(folder / "report.md", markdown(report, [image.name for image in images]))
    write_text(folder / "report.html", page(report))
    return [folder / "results.json", folder / "report.md", folder / "report.html", *images]


def _labels(report: Report, row: Row) -> list[str]:
    """Concurrency, only in the first row of a group, and name."""
    first = row["configuration"] == report.names[0]
    return [str(row["concurrency"]) if first else "", row["configuration"]]


def _interval(speedup: Mapping[str, float | None]) -> str:
    return "" if speedup["low"] is None else f"{figure(speedup['low'])} – {figure(speedup['high'])}"


def _percentiles(values: Mapping[str, float] | None) -> str:
    return "–" if values is None else " ".join(_short(value) for value in values.values())


def _short(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"
