# SPDX-License-Identifier: Apache-2.0
"""Train a small Llama on the standard library's sources: `python -m redrafter_training.tiny_target.train --out DIR`.

The target is small, but a language model of real text, so that a drafter's acceptance on it is meaningful. Its weights
are rounded to bfloat16 before they are evaluated and stored: serving it, in bfloat16 or float32, uses the same values
as the distillation.
"""

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from redrafter_training.config.recipe import Budget
from redrafter_training.data.python_corpus import load_corpus, split
from redrafter_training.data.windows import cut_windows, encode_files, text_batches
from redrafter_training.tiny_target.tokenizer import train_tokenizer
from redrafter_training.trainer.lr_schedule import learning_rate_scale, steps
from redrafter_training.trainer.optimizer import SplitOptimizer
from redrafter_training.utils.command import run_command
from redrafter_training.utils.provenance import provenance
from redrafter_vllm.utils import strict_json
from redrafter_vllm.utils.paths import PlaceError, check_writable, user_path

PACKAGES = ("torch", "transformers", "tokenizers")  # their versions are stored in training.json
UNFINISHED = frozenset({"checkpoint", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"})


@dataclass(frozen=True)
class TargetConfig:
    """The target's shape and training options."""

    budget: Budget
    vocab_size: int = 2048
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    intermediate_size: int = 704
    max_positions: int = 2048
    window: int = 512
    batch_size: int = 4
    learning_rate: float = 5e-3
    warmup: float = 0.03
    weight_decay: float = 0.1
    max_grad_norm: float = 1.0
    checkpoint_seconds: float = 180.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}")
        if not 2 <= self.window <= self.max_positions:
            raise ValueError(f"window must be in [2, max_positions={self.max_positions}], got {self.window}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not (self.learning_rate > 0 and 0 < self.warmup < 1):
            raise ValueError("learning_rate must be positive and warmup a fraction in (0, 1)")


RECIPES = {
    "short": TargetConfig(Budget(max_steps=900, max_seconds=180)),
    "long": TargetConfig(Budget(max_steps=6000, max_seconds=2500)),
}


def build_target(config: TargetConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A randomly initialised Llama of the configured shape, seeded."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def next_token_loss(model: LlamaForCausalLM, tokens: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it. `tokens`: [B, window]"""
    logits = model(input_ids=tokens[:, :-1]).logits.float()
    return nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train_target(
    model: LlamaForCausalLM, files: list[Tensor], config: TargetConfig, checkpoint: Path, *, quiet: bool = False
) -> int:
    """Trains in place, with a checkpoint every `checkpoint_seconds`; returns the number of steps.

    Raises:
        FloatingPointError: the loss is not finite; names the step.
    """
    optimizer = SplitOptimizer(
        model,
        [p for p in model.model.layers.parameters() if p.dim() == 2],
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    data = text_batches(files, config.window, model.config.bos_token_id, config.batch_size, config.seed)
    saved_at, done, shown = time.monotonic(), 0, float("nan")
    model.train()
    for tick in steps(config.budget, "target", quiet=quiet):
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, next(data))
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(f"the target's loss is {value} at step {tick.step}")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step(learning_rate_scale(tick.used, config.warmup))
        done = tick.step + 1
        shown = value if math.isnan(shown) else 0.95 * shown + 0.05 * value
        tick.bar.set_postfix(loss=f"{shown:.3f}", refresh=False)
        if time.monotonic() - saved_at > config.checkpoint_seconds:
            model.save_pretrained(checkpoint)
            saved_at = time.monotonic()
    return done


@torch.inference_mode()
def held_out_loss(model: LlamaForCausalLM, files: list[Tensor], config: TargetConfig, max_windows: int = 128) -> float:
    """Mean cross-entropy in nats per token on windows of held-out files."""
    generator = torch.Generator().manual_seed(0)
    cut = cut_windows(files, config.window, model.config.bos_token_id, generator)[:max_windows]
    model.eval()
    losses = [next_token_loss(model, batch) * len(batch) for batch in cut.split(config.batch_size)]
    return float(sum(losses) / len(cut))


def make_target(
    recipe: str, config: TargetConfig, out: Path, corpus: Path | None = None, *, quiet: bool = False
) -> dict[str, object]:
    """Trains tokenizer and target, stores both in `out`; returns the report, also stored as `training.json`."""
    check_new_target(out)
    started = time.monotonic()
    train_files, held_out_files = split(load_corpus(corpus))
    tokenizer = train_tokenizer((f.text for f in train_files), config.vocab_size, max_length=config.max_positions)
    tokenizer.save_pretrained(out)
    tokenizer.save_pretrained(out / "checkpoint")
    model = build_target(config, tokenizer)
    train_tokens = encode_files(train_files, tokenizer)
    done = train_target(model, train_tokens, config, out / "checkpoint", quiet=quiet)
    model.to(torch.bfloat16).save_pretrained(out)
    report = provenance("redrafter_training.tiny_target.train", PACKAGES) | {
        "recipe": recipe,
        "config": asdict(config),
        "steps": done,
        "tokens": done * config.batch_size * config.window,
        "corpus_tokens": sum(map(len, train_tokens)),
        "held_out_loss": held_out_loss(model.float(), encode_files(held_out_files, tokenizer), config),
        "seconds": round(time.monotonic() - started),
    }
    (out / "training.json").write_text(strict_json.dumps(report, indent=2) + "\n")
    return report


def check_new_target(out: Path) -> None:
    """Raises PlaceError if `out` contains anything except the files of an unfinished training of a target."""
    check_writable(out)
    names = [entry.name for entry in out.iterdir()] if out.is_dir() else []
    if others := sorted(name for name in names if name not in UNFINISHED):
        raise PlaceError(f"{out} is not empty ({', '.join(others[:3])}): choose a new folder")


def parse_args(argv: list[str] | None = None) -> tuple[str, TargetConfig, Path, Path | None]:
    parser = argparse.ArgumentParser(
        prog="python -m redrafter_training.tiny_target.train", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=user_path, required=True, help="folder to write model and tokenizer to")
    parser.add_argument("--corpus", type=user_path, help="folder of Python files (default: the standard library)")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="short", help="how long to train (short: 3 min)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-steps", type=int, help="instead of the recipe's")
    parser.add_argument("--max-seconds", type=float, help="instead of the recipe's; the schedule still runs to its end")
    parser.add_argument("--batch-size", type=int, help="instead of the recipe's, in windows")
    parser.add_argument("--learning-rate", type=float, help="instead of the recipe's")
    args = parser.parse_args(argv)
    config = RECIPES[args.recipe]
    budget = Budget(args.max_steps or config.budget.steps, args.max_seconds or config.budget.max_seconds)
    config = replace(
        config,
        budget=budget,
        seed=args.seed,
        batch_size=args.batch_size or config.batch_size,
        learning_rate=args.learning_rate or config.learning_rate,
    )
    return args.recipe, config, args.out, args.corpus


def main(argv: list[str] | None = None) -> int:
    recipe, config, out, corpus = parse_args(argv)

    def body(_: object) -> int:
        report = make_target(recipe, config, out, corpus)
        print(strict_json.dumps({key: report[key] for key in ("steps", "tokens", "held_out_loss", "seconds")}))
        return 0

    return run_command(body, lambda: f"interrupted: the target's last checkpoint, if any, is in {out}/checkpoint")


if __name__ == "__main__":
    sys.exit(main())
