# SPDX-License-Identifier: Apache-2.0
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from benchmarks.models.inflate.__main__ import main
from benchmarks.models.inflate.build import Inflation, Options, _new_folder
from benchmarks.models.inflate.placement import Axis, Piece, empty, place, place_output
from benchmarks.models.inflate.source import SmallLlama
from benchmarks.models.inflate.target import head_axes, rotary_layout
from benchmarks.models.inflate.writer import Contents, write_folder
from redrafter_vllm.checkpoint.config import DrafterConfig
from redrafter_vllm.drafting.beam_search import Beams, beam_search
from redrafter_vllm.model.drafter import Drafter
from redrafter_vllm.predict.shapes import SHAPES, LlamaShape, ShapeError
from tests.models import save_random_drafter, save_random_llama
from tests.paths import ASSET

PROMPTS = ["import os\n\ndef ", "class Reader:\n    def __init__(self", "    return self._"]
ASSET_SHAPE = LlamaShape(2048, 256, 704, 4, 4, 2, 64)
# A head twice as large, one key-value head per query head, all other sizes larger.
DOUBLE_HEADS = LlamaShape(2100, 320, 768, 5, 4, 4, 128)
# A head size that is no multiple (another base of the frequencies), key-value heads shared by more, same vocabulary.
UNEVEN_HEADS = LlamaShape(2048, 288, 704, 4, 12, 3, 80)
# Only more layers.
DEEPER = replace(ASSET_SHAPE, num_hidden_layers=6, tie_word_embeddings=True)
# Everything but the vocabulary larger, embeddings tied as in the small model: no constant.
TIED = LlamaShape(2048, 320, 768, 5, 8, 4, 64, tie_word_embeddings=True)
TINY = LlamaShape(400, 96, 144, 3, 4, 4, 32)


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(ASSET, dtype=torch.float32)


@pytest.mark.parametrize(
    "shape", [DOUBLE_HEADS, UNEVEN_HEADS, DEEPER, TIED], ids=["double", "uneven", "deeper", "tied"]
)
@torch.inference_mode()
def test_same_function(small: PreTrainedModel, tmp_path: Path, shape: LlamaShape) -> None:
    out = tmp_path / "big"
    Inflation(Options(ASSET, shape, out, ASSET / "redrafter", dtype="float32", shard_bytes=3_000_000)).write()
    big = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert big.num_parameters() == shape.num_parameters
    tokenizer = AutoTokenizer.from_pretrained(out)
    drafters = [Drafter.from_pretrained(folder / "redrafter") for folder in (ASSET, out)]
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        texts = [model.generate(ids, max_new_tokens=12, do_sample=False)[0] for model in (small, big)]
        assert texts[0].tolist() == texts[1].tolist()
        ids = texts[0][None]
        outputs = [model(ids, output_hidden_states=True) for model in (small, big)]
        expected, logits = (output.logits for output in outputs)
        error = (logits[..., :2048] - expected).abs().max() / expected.abs().max()
        assert error <= 1e-5
        assert bool((logits[..., 2048:] < expected.min() - 1000).all())
        beams = [
            _beams(drafter, model, output.hidden_states[-1][0], ids[0])
            for drafter, model, output in zip(drafters, (small, big), outputs, strict=True)
        ]
        _assert_same_beams(*beams)


@torch.inference_mode()
def test_four_times_the_hidden_size_keeps_bfloat16_weights_exactly(tmp_path: Path) -> None:
    """The proportions of SmolLM2 and its shape: tied, three query heads per key-value head, a root that is 2."""
    sizes = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 16}
    small_folder = save_random_llama(tmp_path / "small", tie_word_embeddings=True, **sizes)
    models = [LlamaForCausalLM.from_pretrained(small_folder, dtype=torch.bfloat16)]
    models[0].save_pretrained(small_folder)
    shape = LlamaShape(320, 192, 256, 3, 6, 2, 16, tie_word_embeddings=True)
    drafter = save_random_drafter(tmp_path / "drafter", hidden_size=48)
    Inflation(Options(small_folder, shape, tmp_path / "big", drafter)).write()
    assert "lm_head.weight" not in load_file(tmp_path / "big" / "model.safetensors")
    models.append(LlamaForCausalLM.from_pretrained(tmp_path / "big", dtype=torch.bfloat16))
    ids = torch.randint(3, 320, (1, 40))
    expected, logits = (model.float()(ids).logits for model in models)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    texts = [model.generate(ids, max_new_tokens=24, do_sample=False)[0].tolist() for model in models]
    assert texts[0] == texts[1]
    states = [model(ids, output_hidden_states=True).hidden_states[-1][0] for model in models]
    drafters = [Drafter.from_pretrained(folder) for folder in (drafter, tmp_path / "big" / "redrafter")]
    drafters[0].bfloat16().float()  # rounded as the large one was when it was stored
    beams = [_beams(d, m, context, ids[0]) for d, m, context in zip(drafters, models, states, strict=True)]
    _assert_same_beams(*beams)


def test_a_shape_with_tied_embeddings_takes_no_untied_model(random_target: Path, tmp_path: Path) -> None:
    shape = replace(TINY, vocab_size=320, tie_word_embeddings=True)
    with pytest.raises(ShapeError, match="the model has one of each"):
        Inflation(Options(random_target, shape, tmp_path / "big"))


def _beams(drafter: Drafter, model: PreTrainedModel, contexts: torch.Tensor, roots: torch.Tensor) -> Beams:
    embedding = model.get_input_embeddings().weight
    return beam_search(drafter, embedding, contexts, roots, beam_width=4, beam_length=4)


def _assert_same_beams(small: Beams, big: Beams) -> None:
    assert small.tokens.tolist() == big.tokens.tolist()
    # Sums of up to four log-probabilities.
    torch.testing.assert_close(big.log_probs, small.log_probs, rtol=0, atol=4e-4)


DRAFTERS = {
    "plain": (DrafterConfig(320, 64, 128, 1), {}),
    "more ResBlocks": (DrafterConfig(320, 64, 128, 1), {"num_draft_layers": 3}),
    "no ResBlocks": (DrafterConfig(320, 64, 128, 0), {}),
    "sums instead of a recurrence": (DrafterConfig(320, 64, 128, 2, rnn=False), {}),
    "projection": (DrafterConfig(320, 64, 50, 1), {}),
    "gains a projection": (DrafterConfig(320, 64, 128, 1), {"exit_dim": 150}),
    "trimmed": (DrafterConfig(320, 64, 128, 1, draft_vocab_size=100), {}),
    "trimmed, no row more": (DrafterConfig(320, 64, 128, 1, draft_vocab_size=100), {"draft_vocab_size": 100}),
    "trimmed to more than padding": (DrafterConfig(320, 64, 50, 1, draft_vocab_size=100), {"draft_vocab_size": 300}),
    "gains a draft vocabulary": (DrafterConfig(320, 64, 128, 1), {"draft_vocab_size": 333}),
}


@pytest.fixture(scope="module")
def random_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_llama(tmp_path_factory.mktemp("target"))


@pytest.mark.parametrize("case", DRAFTERS)
def test_drafts_are_the_same(random_target: Path, tmp_path: Path, case: str) -> None:
    config, sizes = DRAFTERS[case]
    torch.manual_seed(0)
    small = Drafter(config)
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    if config.draft_vocab_size is not None:
        small.set_draft_tokens(torch.randperm(320)[: config.draft_vocab_size].sort().values)
    small.save_pretrained(tmp_path / "small")
    options = Options(random_target, TINY, tmp_path / "big", tmp_path / "small", dtype="float32", **sizes)
    Inflation(options).write()
    big = Drafter.from_pretrained(tmp_path / "big" / "redrafter")
    assert (big.config.vocab_size, big.config.hidden_size) == (400, 96)

    # In place of the target: random context and embedding, and a positive constant after the norm.
    context, embedding, roots = torch.randn(7, 64), torch.randn(320, 64), torch.randint(320, (7,))
    wide_context, wide_embedding = torch.zeros(7, 96), torch.zeros(400, 96)
    wide_context[:, :64], wide_context[:, 64] = context, torch.rand(7) + 0.01
    wide_embedding[:320, :64], wide_embedding[:320, 64] = embedding, 0.01
    lengths = {"beam_width": 5, "beam_length": 4}
    _assert_same_beams(
        beam_search(small, embedding, context, roots, **lengths),
        beam_search(big, wide_embedding, wide_context, roots, **lengths),
    )


def test_a_head_of_twice_the_size_includes_the_same_frequencies() -> None:
    pairs, theta = rotary_layout(64, 128, 10_000.0)
    assert (pairs.tolist(), theta) == (list(range(0, 64, 2)), 10_000.0)

    def frequencies(dim: int) -> torch.Tensor:  # as transformers and vLLM compute them
        return 1.0 / (10_000.0 ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))

    assert torch.equal(frequencies(128)[pairs], frequencies(64))


def test_a_head_size_that_is_no_multiple_changes_the_base() -> None:
    pairs, theta = rotary_layout(64, 80, 10_000.0)
    assert pairs.tolist() == list(range(32))
    assert theta == pytest.approx(100_000.0)  # 10^(4 · 80/64); theta^(-2/80) is then 10,000^(-2/64)
    assert theta ** (-2 / 80) == pytest.approx(10_000 ** (-2 / 64))


def test_a_shared_head_is_copied_if_the_large_shape_shares_less() -> None:
    small = LlamaShape(8, 8, 8, 1, 4, 2, 2)
    queries, keys = head_axes(small, replace(small, num_key_value_heads=4), torch.arange(1))
    assert keys.sources.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]
    assert keys.places.tolist() == list(range(8))
    assert queries.places.tolist() == queries.sources.tolist() == list(range(8))


def test_heads_that_share_stay_together() -> None:
    small = LlamaShape(8, 8, 8, 1, 4, 2, 2)
    # Two key-value heads for four query heads each, of four dimensions: pairs (0, 2) and (1, 3).
    queries, keys = head_axes(small, LlamaShape(8, 8, 8, 1, 8, 2, 4), torch.arange(1))
    assert keys.places.tolist() == [0, 2, 4, 6]
    assert queries.places.tolist() == [0, 2, 4, 6, 16, 18, 20, 22]
    assert queries.sources.tolist() == list(range(8))


def test_placing() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    piece = place(weight, Axis.at(4, torch.tensor([3, 0])), Axis.at(3, torch.tensor([0, 2])), scale=2.0)
    assert piece.rows.tolist() == [0, 3]
    assert piece.dense_rows(0, 2).tolist() == [[6, 0, 8], [2, 0, 4]]
    with pytest.raises(ValueError, match="two sources"):
        Axis(4, torch.tensor([1, 1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="outside"):
        Axis.at(2, torch.tensor([2]))


def test_rows_without_source_are_suppressed_copies_of_row_0() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    rows, columns = Axis.at(4, torch.tensor([0, 2])), Axis.first(2, 3)
    piece = place_output(weight, rows, columns, constant=2, suppression=64.0)
    assert piece.dense_rows(0, 4).tolist() == [[1, 2, 0], [1, 2, -64], [3, 4, 0], [1, 2, -64]]
    with pytest.raises(ValueError, match="no constant"):
        place_output(weight, rows, columns, constant=None, suppression=64.0)


@pytest.mark.parametrize("shard_bytes", [1, 40, 1000])
def test_files_contain_the_placed_values(tmp_path: Path, shard_bytes: int) -> None:
    pieces = {
        "matrix": Piece((5, 2), torch.tensor([0, 1, 4]), torch.tensor([1]), torch.tensor([[1.0], [2.0], [3.0]])),
        "nothing": empty((3, 2)),
        "vector": Piece((2,), torch.tensor([1]), None, torch.tensor([7.0])),
    }
    shapes = {name: piece.shape for name, piece in pieces.items()}
    done: list[int] = []
    contents = Contents(shapes, dict.fromkeys(shapes, torch.float32), pieces.__getitem__)
    write_folder(tmp_path, contents, shard_bytes, done.append)
    assert done == [40, 24, 8]
    assert len(list(tmp_path.glob("*.safetensors"))) == {1: 3, 40: 2, 1000: 1}[shard_bytes]
    stored = {name: value for file in tmp_path.glob("*.safetensors") for name, value in load_file(file).items()}
    assert stored["matrix"].tolist() == [[0, 1], [0, 2], [0, 0], [0, 0], [0, 3]]
    assert stored["nothing"].tolist() == [[0, 0]] * 3
    assert stored["vector"].tolist() == [0, 7]


def test_a_folder_is_written_atomically(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), _new_folder(tmp_path / "new") as folder:
        shutil.copyfile(tmp_path / "absent", folder / "half")
    assert list(tmp_path.iterdir()) == []
    with _new_folder(tmp_path / "new") as folder:
        (folder / "whole").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "whole"]
    with pytest.raises(ShapeError, match="exists"), _new_folder(tmp_path / "new"):
        pass


@pytest.mark.parametrize(
    ("name", "parameters"),
    # As published for Llama 2, whose sizes Vicuna has, and for Llama 3.
    [
        ("vicuna-7b", 6_738_415_616),
        ("vicuna-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
    ],
)
def test_named_shapes_have_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert SHAPES[name].num_parameters == parameters


def test_the_shape_for_smollm2_has_a_billion_parameters() -> None:
    # The embedding 49,152 · 2304; 30 layers of queries and outputs 2 · 1536 · 2304, keys and values 2 · 512 · 2304,
    # three matrices of 3072 · 2304 and two norms; the final norm.
    layer = 2 * 3_538_944 + 2 * 1_179_648 + 3 * 7_077_888 + 2 * 2304
    assert SHAPES["smollm2-1b"].num_parameters == 113_246_208 + 30 * layer + 2304 == 1_033_512_192


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(ASSET), "--drafter", str(ASSET / "redrafter"), "--out", str(tmp_path / "big")]
    for name, shape in SHAPES.items():  # a tied one takes only its own vocabulary
        assert main([*command, "--shape", name, "--dry-run"]) == int(shape.tie_word_embeddings)
    printed = capsys.readouterr().out
    # 6.738 B parameters in bfloat16; the drafter's 430 M are those of the paper's for Vicuna-7B.
    assert "6.738 B parameters    13.477 GB in 3 files" in printed
    assert "0.430 B parameters     0.860 GB" in printed
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_folder_to_serve(
    random_target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shape.json").write_text(json.dumps(_config(TINY)))
    drafter = save_random_drafter(tmp_path / "drafter")
    command = ["--model", str(random_target), "--drafter", str(drafter), "--shape", str(tmp_path / "shape.json")]
    out = tmp_path / "big"
    assert main([*command, "--out", str(out)]) == 0
    assert "GB on the disk" in capsys.readouterr().out
    config = json.loads((out / "config.json").read_text())
    assert {key: config[key] for key in _config(TINY)} == _config(TINY)
    assert config["dtype"] == "bfloat16"
    # κ is the largest power of two whose square is at most half of 64 · 10^-6: 2^-8; what is left of eps is
    # (64 · 10^-6 - 2^-16) / 96.
    assert config["rms_norm_eps"] == pytest.approx((64e-6 - 2**-16) / 96)
    assert (out / "generation_config.json").is_file()
    assert json.loads((out / "inflation.json").read_text())["shape"]["hidden_size"] == 96
    assert Drafter.from_pretrained(out / "redrafter").config == DrafterConfig(400, 96, 192, 1)
    assert main([*command, "--out", str(out)]) == 1
    assert "exists: give a new folder" in capsys.readouterr().err


def _config(shape: LlamaShape) -> dict[str, object]:
    return {"model_type": "llama", **shape.__dict__}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_size": 255}, "hidden_size 255, less than the model's 256"),
        ({"num_key_value_heads": 2, "num_attention_heads": 2}, "num_attention_heads 2, less than"),
        ({"num_key_value_heads": 1, "num_attention_heads": 8}, "1 key-value heads, each shared by 8 .* need 2"),
        ({"hidden_size": 256}, "52 tokens that the model lacks, and no hidden dimension"),
        ({"tie_word_embeddings": True}, "has 52 tokens that the model lacks, whose logits only an output layer"),
    ],
)
def test_shapes_that_are_too_small(tmp_path: Path, changed: dict[str, int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        Inflation(Options(ASSET, replace(DOUBLE_HEADS, **changed), tmp_path / "big"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention_bias": True}, "has biases"),
        ({"model_type": "qwen2"}, "not llama"),
        ({"model_type": "mamba"}, "its shape is known only for"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "type yarn"),
        ({"rms_norm_eps": 0.0}, "rms_norm_eps 0.0"),
        ({"num_hidden_layers": 5}, "lacks model.layers.4"),
    ],
)
def test_models_that_cannot_be_inflated(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    config = json.loads((ASSET / "config.json").read_text()) | changed
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(ASSET / "model.safetensors")
    with pytest.raises(ShapeError, match=message):
        SmallLlama(tmp_path)


def test_a_drafter_by_itself(random_target: Path, tmp_path: Path) -> None:
    options = Options(random_target, TINY, tmp_path / "big", save_random_drafter(tmp_path / "drafter"))
    Inflation(options).write()
    Inflation(options).write_drafter(tmp_path / "alone")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "big" / "redrafter" / name).read_bytes()
    with pytest.raises(ShapeError, match="exists"):
        Inflation(options).write_drafter(tmp_path / "alone")
    with pytest.raises(ShapeError, match="no drafter to write"):
        Inflation(Options(random_target, TINY, tmp_path / "big")).write_drafter(tmp_path / "none")


def test_drafter_shapes_that_are_too_small(random_target: Path, tmp_path: Path) -> None:
    drafter = save_random_drafter(tmp_path / "drafter")
    for sizes, message in (
        ({"exit_dim": 100}, "exit_dim would be 100"),
        ({"draft_vocab_size": 200}, "less than its present"),
    ):
        with pytest.raises(ShapeError, match=message):
            Inflation(Options(random_target, TINY, tmp_path / "big", drafter, **sizes))


def test_errors_of_the_command_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", str(tmp_path), "--shape", "vicuna-7b", "--out", str(tmp_path / "big")]) == 1
    assert main(["--model", str(ASSET), "--shape", "vicuna-8b", "--out", str(tmp_path / "big")]) == 1
    printed = capsys.readouterr().err
    assert "config.json cannot be read" in printed
    assert "There is no shape 'vicuna-8b'" in printed
