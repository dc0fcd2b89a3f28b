# SPDX-License-Identifier: Apache-2.0
"""How the method is recognised, and that vLLM does not change without it."""

import importlib
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tests.engine.conftest import MakeEngine
from tests.engine.generation import CHAIN, TREE, cpu_only, runner, scheduler, worker

UNUSED = """
import sys
from redrafter_vllm.plugin import register
from vllm.engine.arg_utils import EngineArgs
register(); register()
config = EngineArgs(model=sys.argv[1], max_model_len=64).create_engine_config()
print("speculative:", config.speculative_config, config.attention_config.backend)
print("configuration:", "redrafter_vllm.integration.speculative_config" in sys.modules)
from vllm.v1.worker.gpu import model_runner
from vllm.platforms.cpu import CpuPlatform
from vllm.sampling_params import SamplingParams
for function in (model_runner.init_speculator, CpuPlatform.get_attn_backend_cls, SamplingParams._validate_spec_decode):
    print("module:", function.__module__, hasattr(function, "_redrafter_original"))
"""

CHOSEN = """
import sys
from vllm.engine.arg_utils import EngineArgs
from vllm.plugins import load_general_plugins
load_general_plugins()
EngineArgs(model=sys.argv[1], max_model_len=64, speculative_config={"method": "redrafter"}).create_engine_config()
"""

ARRIVED = """
import pickle, sys
config = pickle.load(sys.stdin.buffer)
from vllm.v1.worker.gpu import model_runner
from vllm.v1.spec_decode.metrics import SpecDecodingProm
for function in (model_runner.init_speculator, SpecDecodingProm.observe):
    print("rebound:", hasattr(function, "_redrafter_original"))
print(config)
"""


@pytest.mark.process
def test_installed_and_not_used(random_target: Path) -> None:
    command = [sys.executable, "-c", UNUSED, str(random_target)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "speculative: None None" in output
    assert "configuration: False" in output
    modules = [line for line in output if line.startswith("module:")]
    assert len(modules) == 3
    assert all(line.startswith("module: vllm.") and line.endswith("False") for line in modules)


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_a_configuration_that_arrives_in_a_process_installs_the_patches(
    make_engine: MakeEngine, random_target: Path, pickler: str
) -> None:
    """Executors send it with either; vLLM may spawn its processes, or start them on another machine."""
    config = make_engine(random_target, TREE).llm_engine.vllm_config.speculative_config
    stored = importlib.import_module(pickler).dumps(config)
    command = [sys.executable, "-c", ARRIVED]
    output = subprocess.run(command, input=stored, capture_output=True, check=True).stdout.decode().splitlines()
    assert output.count("rebound: True") == 2
    assert repr(config) in output


@pytest.mark.process
def test_the_chosen_drafter_is_logged(random_target: Path) -> None:
    command = [sys.executable, "-c", CHOSEN, str(random_target)]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"ReDrafter: drafter {random_target / 'redrafter'}" in output.stdout + output.stderr


@pytest.mark.parametrize(
    "speculative",
    [
        {"method": "redrafter"},
        {"model": "redrafter", "beam_width": 2, "num-speculative-tokens": 6},
        {"method": "redrafter", "model": "PATH"},
        {"model": "PATH"},
        {"redrafter_num_beams": 3, "redrafter_draft_len_per_beam": 3, "method": "redrafter"},
    ],
)
def test_ways_to_ask(make_engine: MakeEngine, random_target: Path, speculative: dict[str, Any]) -> None:
    drafter = str(random_target / "redrafter")
    llm = make_engine(random_target, {key: drafter if value == "PATH" else value for key, value in speculative.items()})
    config = llm.llm_engine.vllm_config.speculative_config
    assert config.method == "redrafter"
    assert config.checkpoint == drafter
    assert type(runner(llm).rejection_sampler).__name__ == "TreeSampler"


def test_other_methods_are_left_to_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from redrafter_vllm.integration.frontend.detection import is_redrafter

    for options in (None, {}, {"method": "ngram", "model": "redrafter"}, {"model": "org/eagle"}, {"model": "ngram"}):
        assert not is_redrafter(options)


def test_flag() -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    load_general_plugins()
    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    arguments = parser.parse_args(["--model", "m", "--speculative-model", "redrafter"])
    assert EngineArgs.from_cli_args(arguments).spec_model == "redrafter"
    assert "--speculative-model" in parser.format_help()


def test_flag_and_config_contradict(random_target: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    engine_args = EngineArgs(model=str(random_target), spec_model="redrafter", speculative_config={"model": "other"})
    # Our sentence on vLLM 0.32; 0.33 refuses it by itself.
    with pytest.raises(ValueError, match=r"'model'(\] are mutually exclusive| is set both by its own flag)"):
        engine_args.create_engine_config()


@cpu_only
def test_plain_engines_beside_ours_keep_their_attention(make_engine: MakeEngine, random_target: Path) -> None:
    names = {
        key: {group.backend.get_name() for groups in runner(llm).attn_groups for group in groups}
        for key, llm in {
            "tree": make_engine(random_target, TREE),
            "plain": make_engine(random_target),
            "chain": make_engine(random_target, CHAIN),
        }.items()
    }
    assert names == {"tree": {"CUSTOM"}, "plain": {"CPU_ATTN"}, "chain": {"CPU_ATTN"}}


def test_plain_engines_beside_ours_have_vllms_own_classes(make_engine: MakeEngine, random_target: Path) -> None:
    """Scheduler, worker and runner; so nothing that these do can change without the method."""

    def classes(llm: Any) -> set[str]:
        return {f"{type(part).__module__.partition('.')[0]}" for part in (scheduler(llm), worker(llm), runner(llm))}

    tree, plain = make_engine(random_target, TREE), make_engine(random_target)
    assert (classes(tree), classes(plain)) == ({"redrafter_vllm"}, {"vllm"})


@pytest.mark.parametrize(
    "options", [{"scheduler_cls": "another.Scheduler"}, {"worker_cls": "another.Worker"}], ids=["scheduler", "worker"]
)
def test_classes_of_the_users_own_are_refused(random_target: Path, options: dict[str, str]) -> None:
    from vllm.engine.arg_utils import EngineArgs

    (option,) = options
    args = EngineArgs(str(random_target), max_model_len=64, speculative_config={"method": "redrafter"}, **options)
    with pytest.raises(ValueError, match=rf"but {option}='another\.\w+' was chosen; leave {option} unset"):
        args.create_engine_config()


def test_vllm_does_not_warn_of_our_scheduler(make_engine: MakeEngine, random_target: Path) -> None:
    """That its interface is not public, and that asynchronous scheduling may be off; of others it does."""
    from vllm.config import scheduler as vllms

    own = make_engine(random_target, TREE).llm_engine.vllm_config.scheduler_config
    other = replace(own, scheduler_cls="vllm_plugin.Other", max_model_len=64, is_encoder_decoder=False)
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    vllms.logger.addHandler(handler)
    try:
        with patch.object(vllms.logger, "warning_once", vllms.logger.warning):  # which remembers what it has said
            assert own.get_scheduler_cls().__name__ == "build_scheduler"
            assert records == []
            with pytest.raises(ModuleNotFoundError):
                other.get_scheduler_cls()
            assert "Using custom scheduler class vllm_plugin.Other" in records[0]
    finally:
        vllms.logger.removeHandler(handler)


def test_engine_arguments_serve_more_than_once(random_target: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs

    args = EngineArgs(str(random_target), max_model_len=64, speculative_config={"method": "redrafter"})
    first, second = args.create_engine_config(), args.create_engine_config()
    assert first.parallel_config.worker_cls == second.parallel_config.worker_cls
    assert first.scheduler_config.scheduler_cls == second.scheduler_config.scheduler_cls


def test_a_changed_target_of_a_rebinding_raises_one_sentence() -> None:
    from redrafter_vllm.integration.patches.rebind import rebind
    from redrafter_vllm.integration.vllm_interface.entry import InterfaceChangedError

    class Owner:
        def moved(self, something: int) -> None:
            pass

    with pytest.raises(
        InterfaceChangedError, match=r"Owner\.moved, which this vLLM has with other parameters than \(self, it\)"
    ):
        rebind(Owner, "moved", lambda original: original, "self it")
    with pytest.raises(InterfaceChangedError, match=r"rebinds Owner\.gone, which this vLLM does not have"):
        rebind(Owner, "gone", lambda original: original)
