# SPDX-License-Identifier: Apache-2.0
"""The list of vLLM's names that the package uses: right for the installed version and for 0.33, and complete."""

import ast
import json
import subprocess
import zipfile
from collections.abc import Iterator
from inspect import isfunction
from pathlib import Path

import pytest

from redrafter_vllm.cli.doctor import main
from redrafter_vllm.integration.attention.limits import TreeLimits
from redrafter_vllm.integration.patches import api, attention, front, install, metrics, products, runner
from redrafter_vllm.integration.scheduler.redrafter_scheduler import RedrafterAsyncScheduler, RedrafterScheduler
from redrafter_vllm.integration.vllm_interface import check
from redrafter_vllm.integration.vllm_interface.check import Report, State, Verdict, facts_of, problem, verdict
from redrafter_vllm.integration.vllm_interface.entry import Use, VllmName
from redrafter_vllm.integration.vllm_interface.names import VLLM_NAMES
from redrafter_vllm.integration.vllm_interface.source import Fact, Source, open_tree
from redrafter_vllm.integration.worker.cpu import RedrafterCpuWorker
from redrafter_vllm.integration.worker.runner import RedrafterCpuRunner
from redrafter_vllm.integration.worker.sampler import TreeSampler
from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator
from tests.paths import ROOT
from tools.check_vllm_interface import DOCUMENT, TABLE_BEGINS, load, save, with_table
from tools.check_vllm_interface import main as write

FIXTURE = Path(__file__).with_name("vllm_interface_0_33.json")
OURS = {
    "SpeculativeConfig.compute_hash": ["speculative_config.py:RedrafterSpeculativeConfig"],
    "DefaultModelState": ["worker/model_state.py:RedrafterModelState"],
    "ModelSpecificAttnMetadata": ["worker/model_state.py:TreeAttnMetadata"],
    "BaseSpeculator": ["worker/speculator.py:RedrafterSpeculator"],
    "RejectionSampler": ["worker/sampler.py:TreeSampler"],
    "AttentionBackend": ["attention/cpu.py:CpuTreeBackend"],
    "AttentionBackend.get_name": ["attention/limits.py:TreeLimits"],
    "AttentionMetadataBuilder": ["attention/metadata.py:TreeMetadataBuilder"],
    "AttentionBackend.supports_device_cpu_query_lens_mismatch": ["attention/limits.py:TreeLimits"],
    "AdaptiveVerificationManager": ["worker/gpu_adaptive_trees.py:GpuAdaptiveTrees"],
    "CudaGraphManager": ["worker/draft_graphs.py:DraftGraphs"],
    "AttentionImpl": ["attention/impl.py:TreeForward"],
    "Scheduler.update_draft_token_ids": ["scheduler/draft_limits.py:DraftLimits"],
    "Scheduler.make_spec_decoding_stats": ["scheduler/draft_statistics.py:DraftStatistics"],
    "Scheduler.make_stats": ["scheduler/draft_statistics.py:DraftStatistics"],
    "Scheduler.update_from_output": [
        "scheduler/draft_statistics.py:DraftStatistics",
        "scheduler/sessions.py:Sessions",
    ],
    "Scheduler": ["scheduler/sessions.py:Sessions"],
    "AsyncScheduler": ["scheduler/redrafter_scheduler.py:RedrafterAsyncScheduler"],
    "GPUModelRunner": ["worker/runner.py:RedrafterRunner"],
    "LoRAModelRunnerMixin": ["worker/runner.py:RedrafterRunner"],
    "PromptLogprobsWorker": ["worker/prompt_logprobs.py:DraftlessPromptLogprobs"],
    "Worker": ["worker/gpu.py:RedrafterWorker"],
    "CPUWorker": ["worker/cpu.py:RedrafterCpuWorker"],
}


def test_all_names_hold_on_the_installed_version() -> None:
    facts = facts_of(Source(open_tree("installed")))
    assert {entry.target: why for entry in VLLM_NAMES if (why := problem(entry, facts[entry.target]))} == {}


def test_all_names_hold_on_0_33() -> None:
    """Against what was read from its sources and stored.

    docs/design/vllm_interface.md says how to read them again after a change of the list.
    """
    version, facts = load(FIXTURE)
    assert version.startswith("0.33.")
    assert facts.keys() >= {entry.target for entry in VLLM_NAMES}, (
        "read the sources of 0.33 again: docs/design/vllm_interface.md"
    )
    assert {entry.target: why for entry in VLLM_NAMES if (why := problem(entry, facts[entry.target]))} == {}


@pytest.mark.parametrize("backend", ["flash_attn:FlashAttentionBackend", "triton_attn:TritonAttentionBackend"])
def test_tree_backends_define_capabilities_new_in_0_33(backend: str) -> None:
    """A capability that 0.33 has added to a backend would be inherited by ours, which has to override it."""
    target = f"vllm.v1.attention.backends.{backend}"
    known = Source(open_tree("installed")).fact(target).attributes
    added = {name for name in load(FIXTURE)[1][target].attributes - known if name.startswith("supports_")}
    assert backend.startswith("triton") or "supports_kv_cache_update_bypass" in added | known
    assert added <= vars(TreeLimits).keys()


def imported_names() -> Iterator[tuple[str, str]]:
    """Every name of vLLM that the package imports, and the file."""
    for file in sorted((ROOT / "redrafter_vllm").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from ((f"{node.module}:{alias.name}", file.name) for alias in node.names)


# What vLLM documents for its users; whoever calls it needs no list.
PUBLIC = {"vllm:LLM", "vllm:SamplingParams", "vllm.sampling_params:RequestOutputKind"}


def test_no_unlisted_name_is_imported() -> None:
    known = (
        PUBLIC | {entry.target for entry in VLLM_NAMES} | {entry.module.replace(".", ":", 1) for entry in VLLM_NAMES}
    )
    modules = {entry.module for entry in VLLM_NAMES}
    names = list(imported_names())
    assert len(names) > 30
    unknown = [(name, file) for name, file in names if name not in known and name.replace(":", ".") not in modules]
    assert unknown == [], "enter these in redrafter_vllm/integration/vllm_interface/"


def test_all_listed_rebindings_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Except those of platforms: a machine has one of them."""
    installed: list[str] = []
    for module in (api, attention, front, metrics, products, runner):
        monkeypatch.setattr(module, "rebind_listed", lambda target, make: installed.append(target))
    install.install_recognition()
    install.install_all()
    platforms = {entry.target for entry in VLLM_NAMES if entry.module.startswith("vllm.platforms.")}
    listed = {entry.target for entry in VLLM_NAMES if entry.use is Use.REBOUND}
    assert sorted({*installed} - platforms) == sorted(listed - platforms)


def test_overriding_methods_take_vllms_parameters() -> None:
    """In vLLM's order; further parameters of ours must have a default, and `*args` passes on the rest of vLLM's."""
    for entry in (entry for entry in VLLM_NAMES if entry.use is Use.OVERRIDDEN):
        owner, _, method = entry.path.partition(".")
        for place in OURS.get(entry.path) or OURS[owner]:
            file, _, name = place.partition(":")
            tree = ast.parse((ROOT / "redrafter_vllm" / "integration" / file).read_text())
            (own,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
            (function,) = [node for node in own.body if isinstance(node, ast.FunctionDef) and node.name == method]
            names, wanted = [arg.arg for arg in function.args.args], entry.parameters.split()
            if function.args.vararg is not None:
                assert names == wanted[: len(names)], (entry.target, place)
                continue
            assert names[: len(wanted)] == wanted, (entry.target, place)
            assert len(names) - len(wanted) <= len(function.args.defaults), (entry.target, place)


def test_methods_that_ours_derive_from_vllms_are_listed() -> None:
    """Every method of a scheduler, worker or runner of ours that vLLM's class has as well."""
    listed = {entry.path.partition(".")[2] for entry in VLLM_NAMES if entry.use is Use.OVERRIDDEN}
    listed.add("__init__")
    for ours in (RedrafterScheduler, RedrafterAsyncScheduler, RedrafterCpuWorker, RedrafterCpuRunner):
        mro = ours.__mro__
        own = [cls for cls in mro if cls.__module__.startswith("redrafter_vllm.")]
        vllms = [cls for cls in mro if cls not in own and cls is not object]
        methods = {name for cls in own for name, value in vars(cls).items() if isfunction(value)}
        assert {name for name in methods if any(name in vars(base) for base in vllms)} <= listed, ours


def test_the_document_has_the_whole_list() -> None:
    """And its table of rebindings, with the reasons, has a row for each of them."""
    text = DOCUMENT.read_text()
    assert with_table(text) == text, "run python -m tools.check_vllm_interface --document"
    for entry in (entry for entry in VLLM_NAMES if entry.use is Use.REBOUND):
        assert f"| `{entry.module}.{entry.path}` |" in text.partition(TABLE_BEGINS)[0], entry.target


def changed(tmp_path: Path, text: str) -> Source:
    (tmp_path / "vllm" / "sub").mkdir(parents=True)
    (tmp_path / "vllm" / "__init__.py").write_text("")
    (tmp_path / "vllm" / "_version.py").write_text("__version__ = version = '0.99.1'\n")
    (tmp_path / "vllm" / "sub" / "__init__.py").write_text(
        "from .real import Thing as Thing, decorated, helper\nfrom .same_name import same_name\n"
    )
    (tmp_path / "vllm" / "sub" / "same_name.py").write_text("def same_name(): ...\n")
    (tmp_path / "vllm" / "sub" / "real.py").write_text(text)
    return Source(open_tree(str(tmp_path)))


SOURCES = """
from vllm.sub.base import Base
if True:
    def helper(a, b, /, c=1, *, d, e=2, **rest): ...
class Parent:
    inherited: int = 0
    def method(self, x, y=None): ...
class Thing(Parent):
    def __init__(self):
        self.set_here = self.inherited = 1
    def start(self):
        self.first, self.second = 1, 2
@overload
def decorated(function): ...
@overload
def decorated(*, option): ...
def decorated(function=None, *, option=None): ...
"""


def test_facts_are_read_from_sources(tmp_path: Path) -> None:
    source = changed(tmp_path, SOURCES)
    assert source.version() == "0.99.1"
    assert source.fact("vllm.sub:helper") == Fact("function", ("a", "b", "c=", "*", "d", "e=", "**rest"))
    assert source.fact("vllm.sub:Thing.method") == Fact("function", ("self", "x", "y="))
    thing = source.fact("vllm.sub:Thing")
    assert thing.attributes == {"inherited", "method", "__init__", "set_here", "start", "first", "second"}
    assert source.fact("vllm.sub:Thing.inherited").kind == "value"
    assert source.fact("vllm:sub").kind == source.fact("vllm.sub:real").kind == "value"
    assert source.fact("vllm.sub:decorated").parameters == ("function=", "*", "option=")
    assert source.fact("vllm.sub.same_name:same_name").kind == "function"
    for gone in ("vllm.sub:Nothing", "vllm.nothing:Thing", "vllm.sub:Thing.nothing", "vllm.sub:helper.attribute"):
        assert source.fact(gone).kind == "missing"


@pytest.mark.parametrize(
    ("use", "parameters", "why"),
    [
        (Use.REBOUND, "a b c d", None),
        (Use.REBOUND, "a b d c", "takes (a b c d), not (a b d c)"),
        (Use.OVERRIDDEN, "a b c", "takes (a b c d), not (a b c)"),
        (Use.CALLED, "a b d", "takes (a b c d), and is called with (a b d)"),
        (Use.CALLED, "a", "also needs b"),
        (Use.CALLED, "a * b e", "takes no e"),
        (Use.CALLED, "a * b", None),
        (Use.CALLED, "a b * d", None),
    ],
)
def test_changed_parameters(use: Use, parameters: str, why: str | None) -> None:
    assert problem(VllmName("vllm:f", use, parameters), Fact("function", ("a", "b", "c=", "d="))) == why


def test_changed_names() -> None:
    used = VllmName("vllm:C", Use.USED, attributes="one two three")
    assert problem(used, Fact("class", attributes=frozenset({"two", "other"}))) == "has no one, three"
    assert verdict(used, Fact("missing")).state is State.GONE
    assert verdict(used, Fact("class", attributes=frozenset({"two"}))).state is State.CHANGED
    assert verdict(used, Fact("class", attributes=frozenset({"one", "two", "three"}))).state is State.HOLDS
    assert problem(VllmName("vllm:f", Use.CALLED, "a"), Fact("class")) == "is a class now"


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--vllm", "installed"]) == 0
    assert "names hold" in capsys.readouterr().out
    changed(tmp_path, SOURCES)
    wheel = tmp_path / "vllm-0.99.1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in (tmp_path / "vllm").rglob("*.py"):
            archive.write(file, file.relative_to(tmp_path))
    assert main(["--vllm", str(wheel)]) == 1
    out = capsys.readouterr().out
    assert "GONE    rebound    vllm.engine.arg_utils:EngineArgs.add_cli_args\n" in out
    assert "vLLM 0.99.1: 0 of" in out and "UNTESTED: ReDrafter serves with vLLM >=0.32,<0.34" in out
    assert main(["--vllm", str(wheel), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["vllm"], told["is_tested"], len(told["names"])) == ("0.99.1", False, len(VLLM_NAMES))
    assert {"state": "gone", "use": "used", "name": "vllm.config:VllmConfig", "problem": None} in told["names"]
    assert main(["--vllm", str(tmp_path / "nothing")]) == 1
    assert "neither a wheel nor a directory" in capsys.readouterr().err
    assert write([str(wheel), "--write", str(tmp_path / "facts.json")]) == 0
    assert load(tmp_path / "facts.json")[0] == "0.99.1"
    with pytest.raises(SystemExit, match="2"):
        write([])


@pytest.mark.parametrize(
    ("version", "state", "is_good"),
    [
        ("0.33.1", State.HOLDS, True),
        ("0.33.1", State.CHANGED, False),
        ("0.33.1", State.GONE, False),
        ("0.34.0", State.HOLDS, False),
        ("", State.HOLDS, True),
    ],
)
def test_what_counts_as_good(version: str, state: State, is_good: bool) -> None:
    """A version outside the range is not, even where every name holds: nobody would learn of it otherwise."""
    report = Report(version, (Verdict(VLLM_NAMES[0], state),))
    assert report.is_good is is_good
    assert ("UNTESTED" in report.text()) is (version == "0.34.0")


def test_versions_are_downloaded_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is asked for the wheel alone; a folder of the version's name comes first."""
    asked: list[str] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        assert "--no-deps" in command
        with zipfile.ZipFile(folder / "vllm.whl", "w") as archive:
            archive.writestr("vllm/__init__.py", "")
            archive.writestr("vllm/_version.py", "__version__ = '0.99.2'\n")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(check.subprocess, "run", pip)
    for place in ("0.99.2", "newest"):
        report = check.examined(place)
        assert report.version == "0.99.2" and len(report.broken) == len(VLLM_NAMES)
    assert asked == ["vllm==0.99.2", "vllm"]
    changed(tmp_path / "0.99.1", SOURCES)
    monkeypatch.chdir(tmp_path)
    assert check.examined("0.99.1").version == "0.99.1" and len(asked) == 2


def test_a_version_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failed = subprocess.CompletedProcess(
        [], 1, "", "ERROR: Could not find a version\nERROR: No matching distribution\n"
    )
    monkeypatch.setattr(check.subprocess, "run", lambda *args, **options: failed)
    assert main(["--vllm", "9.9"]) == 1
    assert capsys.readouterr().err == "vllm==9.9 cannot be downloaded: ERROR: No matching distribution\n"


def test_facts_survive_json(tmp_path: Path) -> None:
    facts = {"vllm:f": Fact("function", ("a", "b=")), "vllm:C": Fact("class", attributes=frozenset({"x", "y"}))}
    save(facts, "1.2", tmp_path / "facts.json")
    assert load(tmp_path / "facts.json") == ("1.2", facts)


# What vLLM's runner reads of speculators with a model of their own, after checking that it is such a speculator.
DRAFT_MODEL_ATTRIBUTES = {
    "dcp_size",
    "draft_attn_layer_names",
    "draft_token_confidence_probs",
    "load_model",
    "model",
    "observe_verification",
    "prepare_watermarking",
    "set_attn",
    "set_eplb_state",
}


def attributes_read_of(name: str) -> set[str]:
    """The attributes that vLLM's workers read of anything that they call `name`."""
    read = set()
    for file in (open_tree("installed").root / "vllm" / "v1" / "worker").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = node.value
                called = (
                    getattr(owner, "attr", None) if isinstance(owner, ast.Attribute) else getattr(owner, "id", None)
                )
                if called == name:
                    read.add(node.attr)
    return read


@pytest.mark.parametrize(
    ("name", "ours", "known"),
    [("rejection_sampler", TreeSampler, set()), ("speculator", RedrafterSpeculator, DRAFT_MODEL_ATTRIBUTES)],
    ids=["rejection_sampler", "speculator"],
)
def test_our_replacements_have_all_attributes_that_vllm_reads(name: str, ours: type, known: set[str]) -> None:
    """Code that only a GPU runs, such as its warm-up, reads more than a step on a CPU does."""
    read = attributes_read_of(name)
    assert read >= known and len(read) > len(known)
    assert {attribute for attribute in read - known if not hasattr(ours, attribute)} == set()
