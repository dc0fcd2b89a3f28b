# SPDX-License-Identifier: Apache-2.0
"""`redrafter predict`: tables, files, inputs of a user's own, mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from redrafter_vllm.cli.predict import main
from tests.paths import ROOT

DRAFTER = ROOT / "tests" / "assets" / "smollm2-135m-instruct" / "redrafter"
SMOLLM2 = {
    "model_type": "llama",
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
OWN_GPU = {"bandwidth_tb_s": 1.5, "tflops": 200, "memory_gb": 48, "link_gb_s": 32, "source": "test"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "SmolLM2"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMOLLM2))
    return folder


def rows(printed: str) -> list[list[str]]:
    """Cells of the table's rows."""
    lines = [line for line in printed.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_table_says_that_it_is_a_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "vicuna-7b", "--batch", "64", "1", "--tree", "1x4 4x4:16", "4x4:16~"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    assert "Prediction by a cost model, no measurement:" in " ".join(printed.split())
    assert "vicuna-7b on 1 x h100, 1,024 tokens of context" in printed
    found = rows(printed)
    trees = ["plain", "1x4:4", "4x4:16", "4x4:16~"]
    assert [row[:2] for row in found] == [["1", tree] for tree in trees] + [["64", tree] for tree in trees]
    assert [row[3] for row in found[:3]] == ["1.00", "2.35", "2.73"]  # tokens a step, as in the paper's Table 4
    speedups = [float(row[-1]) for row in found]
    assert speedups[0] == speedups[4] == 1
    assert min(speedups) >= 1 and speedups[6] < speedups[2]


def test_an_acceptance_without_single_beams(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--target", "vicuna-7b", "--acceptance", "smollm2-mt-bench", "--batch", "1"]
    assert main(given) == 1
    assert capsys.readouterr().err.startswith("1x4:4: acceptance is known from 4 beams on (")
    assert main([*given, "--tree", "4x4:16 4x4:8"]) == 0
    printed = capsys.readouterr().out
    # 1 + 0.65 + 0.34 + 0.17 + 0.09 of all 16 nodes, and of the first two depths.
    assert [row[2:4] for row in rows(printed)] == [["–", "1.00"], ["16.0", "2.25"], ["8.0", "1.99"]]
    assert "trees cut to fewer nodes are better than predicted" in " ".join(printed.split())


def test_files_and_own_inputs(target: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    gpus = tmp_path / "gpus.json"
    gpus.write_text(json.dumps({"mine": OWN_GPU}))
    files = [tmp_path / "predicted.json", tmp_path / "predicted.png"]
    command = ["--target", str(target), "--drafter", str(DRAFTER), "--gpus", str(gpus), "--gpu", "mine"]
    command += ["--json", str(files[0]), "--plot", str(files[1])]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == list(map(str, files))
    found = json.loads(files[0].read_text())
    assert found["nature"].startswith("Prediction by a cost model, no measurement:")
    assert found["gpu"]["name"] == "mine" and found["gpu"]["bandwidth_tb_s"] == 1.5
    assert found["target"]["name"] == "SmolLM2"
    assert found["drafter"]["draft_vocab_size"] == 8192
    # Measured with that drafter: training.json.
    assert found["acceptance"]["by_depth"]["1"][0] == pytest.approx(0.4672, abs=1e-4)
    assert {one["tree"] for one in found["predictions"]} == {"plain", "1x4:4", "4x4:8", "4x4:16", "4x4:16~"}
    assert files[1].read_bytes().startswith(b"\x89PNG")
    assert main(command) == 1
    assert "exists already, and is not overwritten" in capsys.readouterr().err


def test_the_trimmed_vocabulary_shortens_a_round(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--target", "llama-3-8b", "--batch", "1", "--tree", "4x4:16"]
    milliseconds = []
    for more in ([], ["--draft-vocab-size", "32000"]):
        assert main([*command, *more]) == 0
        milliseconds.append(float(rows(capsys.readouterr().out)[1][5]))
    # The output layer is read four times, from 8,192 numbers: 96,256 tokens fewer at 0.84 · 3.35 TB/s.
    assert milliseconds[0] - milliseconds[1] == pytest.approx(4 * 2 * 96_256 * 8192 / 2.814e12 * 1e3, rel=0.02)


def test_what_does_not_fit_in_memory_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--target", "vicuna-7b", "--batch", "1", "128", "--tree", "1x4"]) == 0
    printed = capsys.readouterr().out
    assert [row[0] for row in rows(printed)] == ["1", "1", "128 *", "128 *"]
    assert "* Weights and caches of so many requests do not fit" in printed


def test_the_list_of_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    names = {row[0] for row in rows(printed)}
    assert {"h100", "h200", "vicuna-7b", "llama-3-70b", "paper"} <= names
    assert "arXiv 2403.09919, Table 4" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h10"], "'h10' is no known GPU"),
        (["--gpus", "none.json"], "none.json cannot be read as JSON"),
        (["--target", "vicuna-8b"], "There is no shape 'vicuna-8b'"),
        (["--target", "llama-3-70b", "--tensor-parallel", "1"], "need 147 GB, 1 of these GPUs have 72"),
        (["--tree", "4x"], "'4x' is no tree"),
        (["--tree", "4x4:900"], "num_speculative_tokens=900 is out of range"),
        (["--tree", "4x4:16+~"], "--tree 4x4:16+~: what copies of the text bring depends on the text, and is not"),
        (["--tree", "1x5"], "beams of 5: acceptance is known to depth 4"),
        (["--batch", "0"], "--batch 0 is out of range: it must be between 1 and 4096"),
        (["--context", "-1"], "at least 0 tokens, not -1"),
        (["--tensor-parallel", "5"], "32 attention heads cannot be split over 5 GPUs evenly"),
        (["--tensor-parallel", "0"], "32 attention heads cannot be split over 0 GPUs evenly"),
        (["--acceptance", "papers"], "'papers' is no known acceptance"),
        (["--draft-vocab-size", "99999"], "draft_vocab_size must be null or an integer from 1"),
        (["--drafter", str(DRAFTER)], "the drafter is for a hidden size of 576"),
        (["--json", "/proc/none/predicted.json"], "cannot be written to"),
    ],
)
def test_mistakes_are_one_sentence(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = options if "--target" in options else ["--target", "vicuna-7b", *options]
    assert main(given) == 1
    printed = capsys.readouterr()
    assert message in printed.err and printed.err.count("\n") == 1 and not printed.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--target is missing"),
        (
            ["--target", "vicuna-7b", "--drafter", "x", "--draft-vocab-size", "9"],
            "--draft-vocab-size is for the paper's",
        ),
    ],
)
def test_options_that_contradict(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(options)
    assert message in capsys.readouterr().err


def test_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("redrafter_vllm.predict.report.drawn", lambda draw: None)
    assert main(["--target", "vicuna-7b", "--plot", str(tmp_path / "a.png")]) == 1
    assert "pip install matplotlib" in capsys.readouterr().err


@pytest.mark.process
def test_help_imports_nothing_slow() -> None:
    script = "import sys; from redrafter_vllm.cli.predict import build_parser; build_parser(); print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = {name.partition(".")[0] for name in output.split()}
    assert not loaded & {"torch", "numpy", "rich", "transformers", "vllm"}
