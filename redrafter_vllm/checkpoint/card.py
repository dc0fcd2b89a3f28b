# SPDX-License-Identifier: Apache-2.0
"""The model card of a drafter: the `README.md` of its folder, with metadata as the Hugging Face hub reads it.

A command that writes a drafter adds sections on what it did. The card belongs to the weights and is replaced with them.
Its last line says so: a card without that line is the user's own, and stays. Loading and serving do not read it.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redrafter_vllm.checkpoint.config import DrafterConfig, tensor_shapes
from redrafter_vllm.checkpoint.files import CONFIG_FILE, read_json, weight_files
from redrafter_vllm.checkpoint.io import check_checkpoint
from redrafter_vllm.checkpoint.locate import is_path
from redrafter_vllm.checkpoint.places import CARD_FILE, CARD_MARK, has_own_card, is_drafter_config
from redrafter_vllm.utils.atomic import write_text
from redrafter_vllm.utils.paths import PlaceError, check_writable

TAGS = ["speculative-decoding", "redrafter", "vllm"]
MEGABYTE = 10**6
TARGET = "TARGET"  # in commands, for a folder whose place nobody else has
HUB_TIMEOUT = 10  # seconds
RESULTS = "Results"
_LICENSE_KEYS = ("license", "license_name", "license_link")
# A conversion or quantisation of a model is, on the hub, that model.
_SAME_MODEL = ("quantized",)


@dataclass(frozen=True)
class CardTarget:
    """What a card says about the target."""

    name: str  # on the hub, or of its folder: no path of the machine
    base_model: str
    license: Mapping[str, Any] = field(default_factory=dict)  # keys of the hub's metadata
    fingerprint: str | None = None  # of its weights
    on_hub: bool = True  # whether `base_model` is a name on the hub

    @property
    def place(self) -> str:
        """What stands for the target in a command that others can type."""
        return self.base_model if self.on_hub else TARGET


def describe_target(target: str, fingerprint: str | None = None) -> CardTarget:
    """The target by its name, with the licence that its own card names, if it has one.

    Args:
        target: folder or hub name.
    """
    folder = Path(target).expanduser()
    local = is_path(target) or folder.is_dir()
    name = place_name(target)
    metadata = card_metadata(folder) if local else _hub_metadata(target)
    base = metadata.get("base_model") if metadata.get("base_model_relation") in _SAME_MODEL else None
    licence = {key: value for key in _LICENSE_KEYS if isinstance(value := metadata.get(key), str)}
    if local and isinstance(base, str):
        return CardTarget(name, base, licence, fingerprint)
    return CardTarget(name, name, licence, fingerprint, on_hub=not local)


def place_name(place: str) -> str:
    """A name on the hub as it is; of a path, which others have no use for, the last part."""
    path = Path(place).expanduser()
    return path.resolve().name if is_path(place) or path.exists() else place


def card_metadata(folder: Path) -> dict[str, Any]:
    """The metadata at the beginning of the card in `folder`; empty where there is none that can be read."""
    from huggingface_hub import ModelCard

    try:
        text = (folder / CARD_FILE).read_text(encoding="utf-8")
        return ModelCard(text, ignore_metadata_errors=True).data.to_dict() if text.startswith("---") else {}
    except Exception:  # of a dozen types, those of the YAML library among them: the card of a model is no input
        return {}


def _hub_metadata(target: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    try:
        return card_metadata(Path(hf_hub_download(target, CARD_FILE, etag_timeout=HUB_TIMEOUT)).parent)
    except Exception:  # no network, no such file, no such name: the card then names no licence
        return {}


def write_card(
    folder: Path, target: CardTarget | None, *, origin: str = "", sections: Mapping[str, str] | None = None
) -> None:
    """Writes the card of the drafter in `folder`, atomically; one of the user's own stays.

    Args:
        target: None if the target is not known.
        origin: a sentence on where the drafter comes from.
        sections: further sections, by heading.

    Raises:
        CheckpointError: there is no drafter in `folder`.
    """
    from huggingface_hub import ModelCardData

    if has_own_card(folder):
        return
    metadata = ModelCardData(
        base_model=target.base_model if target else None,
        library_name="vllm",
        pipeline_tag="text-generation",
        tags=TAGS,
        **(dict(target.license) if target else {}),
    )
    name = target.name if target else "its target"
    place = target.place if target else TARGET
    parts = [
        f"# Recurrent drafter for {name}",
        f"{origin} {_ABOUT.format(target=name)}".strip(),
        _sizes(folder, target),
        _USE.format(target=place, places=_places(target)),
        *(f"## {heading}\n\n{text}" for heading, text in (sections or {}).items()),
        _LIMITS.format(target=place),
    ]
    write_text(folder / CARD_FILE, f"---\n{metadata.to_yaml()}\n---\n\n" + "\n\n".join([*parts, CARD_MARK]) + "\n")


def check_card_place(folder: Path) -> None:
    """Raises PlaceError unless `folder` holds a drafter alone, whose card can be written."""
    if not is_drafter_config(folder / CONFIG_FILE):
        raise PlaceError(f"{folder} is not the folder of a drafter alone: there is no card to write results to")
    check_writable(folder)


def add_results(folder: Path, key: str, text: str) -> None:
    """Adds `text` to the results in the card of `folder`, in place of an earlier one with the same `key`.

    A first one comes before the limits, the others come behind it.

    The remaining card stays as it is, changes by hand included. A folder without a card gets one that names no target.
    """
    card = folder / CARD_FILE
    if not card.is_file():
        write_card(folder, None)
    begin, end = (f"<!-- {word} of {RESULTS.lower()}: {key} -->" for word in ("begin", "end"))
    block = f"{begin}\n{text}\n{end}"
    content = card.read_text(encoding="utf-8")
    earlier = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if earlier.search(content):
        content = earlier.sub(lambda _: block, content, count=1)
    else:
        heading = "" if f"\n## {RESULTS}\n" in content else f"## {RESULTS}\n\n"
        place = _place_of_results(content)
        parts = (content[:place].rstrip(), f"{heading}{block}", content[place:].strip())
        content = "\n\n".join(part for part in parts if part) + "\n"
    write_text(card, content)


def _place_of_results(content: str) -> int:
    """Where the next results go: behind earlier ones, else before the limits, else at the end."""
    if earlier := list(re.finditer(f"<!-- end of {RESULTS.lower()}: .*? -->", content)):
        return earlier[-1].end()
    limits = content.find("\n## Limits\n")
    return len(content) if limits < 0 else limits


def markdown_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table; all columns but the first are aligned to the right where the header is not empty."""
    right = "---:" if any(str(cell) for cell in header) else "---"
    lines = [header, ["---", *[right] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _places(target: CardTarget | None) -> str:
    """What the capital words in the commands stand for."""
    if target and target.on_hub:
        return "this folder as DIR"
    return f"this folder as DIR and {target.name if target else 'the target'}'s folder as {TARGET}"


def _sizes(folder: Path, target: CardTarget | None) -> str:
    hidden_size = check_checkpoint(folder).hidden_size
    rows = [
        ("target", f"{target.name if target else 'unknown'}, hidden size {hidden_size:,}"),
        *([("fingerprint of its weights", f"`{target.fingerprint}`")] if target and target.fingerprint else []),
        *size_rows(folder),
    ]
    return markdown_table(("", ""), rows)


def size_rows(folder: Path) -> list[tuple[str, str]]:
    """Label and text of the sizes of the drafter in `folder`. Raises CheckpointError where there is none."""
    config = check_checkpoint(folder)
    parameters = sum(math.prod(shape) for shape in tensor_shapes(config).values())
    size = sum(file.stat().st_size for file in weight_files(folder))
    dtype = read_json(folder, CONFIG_FILE).get("dtype")
    return [
        ("parameters", f"{parameters:,}"),
        ("weights", f"{size / MEGABYTE:,.1f} MB" + (f", {dtype}" if dtype else "")),
        ("head", f"exit_dim {config.exit_dim:,}, residual blocks: {config.num_draft_layers}"),
        ("state", "recurrent" if config.rnn else "sum of embeddings"),
        ("draft vocabulary", _vocabulary(config)),
    ]


def _vocabulary(config: DrafterConfig) -> str:
    if config.draft_vocab_size is None:
        return f"all {config.vocab_size:,} tokens of the target"
    return f"{config.draft_vocab_size:,} of the target's {config.vocab_size:,} tokens"


_ABOUT = """\
It proposes tokens that {target} verifies, several at a time, so that the target needs fewer steps for the same text \
(Recurrent Drafter, [arXiv 2403.09919](https://arxiv.org/abs/2403.09919)). It generates no text by itself."""

_USE = """\
## Use

With the plugin redrafter-vllm for vLLM, and {places}:

```
vllm serve {target} --speculative-model DIR
```"""

_LIMITS = """\
## Limits

- It fits this target alone. With another vocabulary or hidden size it is refused; with other weights of the same sizes,
  after fine-tuning for instance, its drafts are accepted less often.
- What the target generates is unaffected: drafts change the speed, not the distribution of the text.
- How many drafts are accepted depends on how much the text resembles the training data. On text of another kind or
  language, and at higher temperatures, there may be no gain: measure it on prompts of your own with
  `redrafter evaluate --target {target} --drafter DIR --prompts FILE`."""
