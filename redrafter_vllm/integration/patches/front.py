# SPDX-License-Identifier: Apache-2.0
"""Names of vLLM's front end by which the method is recognised and configured, and its errors reach the user."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.frontend.error_hook import end_in_one_sentence
from redrafter_vllm.integration.patches.rebind import interface_changed, rebind, rebind_listed
from redrafter_vllm.integration.start_errors import expect_start_errors, raise_start_error
from redrafter_vllm.integration.versions import UnsupportedVllmError, installed_before
from redrafter_vllm.utils.messages import shown


def install_recognition(on_use: Callable[[], None]) -> None:
    """What every process needs to recognise the method; `on_use` is called when a user asks for it."""
    # vLLM knows its speculative methods by a closed list. Can go when it has a registry of methods.
    rebind_listed(
        "vllm.engine.arg_utils:EngineArgs.create_speculative_config", partial(_create_speculative_config, on_use)
    )
    # `--speculative-model NAME`, once a flag of vLLM. Can go without loss: `--spec-model` means the same.
    rebind_listed("vllm.engine.arg_utils:EngineArgs.add_cli_args", _add_cli_args)


def install_refusal(message: str) -> None:
    """For a vLLM outside the supported range: a request for ReDrafter fails with `message`, all else works."""
    from vllm.engine.arg_utils import EngineArgs

    def refuse(original: Callable) -> Callable:
        def create_speculative_config(self: Any, *args: Any, **kwargs: Any) -> Any:
            options = getattr(self, "speculative_config", None)
            given = options if isinstance(options, Mapping) else {}
            names = (given.get("method"), given.get("model"), getattr(self, "spec_model", None))
            if "redrafter" in names:
                raise UnsupportedVllmError(message)
            return original(self, *args, **kwargs)

        return create_speculative_config

    rebind(EngineArgs, "create_speculative_config", refuse)
    rebind(EngineArgs, "add_cli_args", _add_cli_args)


def install() -> None:
    """What the front end needs once the method is used."""
    allow_async_scheduling()
    # The front end does not learn why an engine's process has ended. Can go when vLLM passes the error on.
    rebind_listed("vllm.v1.engine.utils:wait_for_engine_startup", raise_start_error)


def allow_async_scheduling() -> None:
    """Let `VllmConfig` of vLLM 0.32 schedule asynchronously with this method, as it does with EAGLE.

    It has closed lists of the methods for which it may, one of which it reads for nothing else. The method meets their
    conditions: drafts stay on the device, the scheduler counts placeholders, and no shape depends on how many of them
    were accepted. vLLM 0.33 reads these lists for Model Runner V1 only, and is left alone.

    Raises:
        InterfaceChangedError: The list is gone or holds other methods.
    """
    if not installed_before("0.33"):
        return
    from vllm.config import vllm as vllm_config

    methods = get_args(getattr(vllm_config, "NgramGPUTypes", None))
    if "redrafter" in methods:
        return
    if methods != ("ngram_gpu",):
        raise interface_changed("vllm.config.vllm.NgramGPUTypes", f"has as {methods}, not as ('ngram_gpu',)")
    vllm_config.NgramGPUTypes = Literal["ngram_gpu", "redrafter"]


def _create_speculative_config(on_use: Callable[[], None], original: Callable) -> Callable:
    def create_speculative_config(self: Any, target_model_config: Any, target_parallel_config: Any) -> Any:
        # Imported here, as every process of vLLM loads the plugin.
        from redrafter_vllm.integration.frontend.detection import is_redrafter

        flags = {"method": self.spec_method, "model": self.spec_model, "num_speculative_tokens": self.spec_tokens}
        given = {name: value for name, value in flags.items() if value is not None}
        options = self.speculative_config or {}
        if not isinstance(options, Mapping):
            raise OptionError(
                'The speculative config must be an object of options such as {"method": "redrafter"}, not '
                f"{shown(options)}."
            )
        if not is_redrafter({**options, **given}):
            return original(self, target_model_config, target_parallel_config)
        on_use()
        from redrafter_vllm.integration.frontend.build_config import build_speculative_config
        from redrafter_vllm.integration.frontend.engine_args import check_engine_args, select_tree_attention
        from redrafter_vllm.integration.frontend.own_classes import use_own_classes

        if twice := sorted(given.keys() & options.keys()):
            raise OptionError(f"{twice[0]!r} is set both by its own flag and in --speculative-config; set it once.")
        config = build_speculative_config(
            {
                **options,
                **given,
                "target_model_config": target_model_config,
                "target_parallel_config": target_parallel_config,
            }
        )
        check_engine_args(self, config)
        use_own_classes(self, target_parallel_config)
        if not config.drafting.is_chain:
            select_tree_attention(self)
        expect_start_errors()
        return config

    return create_speculative_config


def _add_cli_args(original: Callable) -> Callable:
    def add_cli_args(parser: Any) -> Any:
        parser = original(parser)
        if "--speculative-model" in parser._option_string_actions:
            return parser
        end_in_one_sentence()
        # Plain `--help` lists groups, not flags: in its own group the flag is where users look first.
        group = parser.add_argument_group(
            "ReDrafter", "Speculative decoding with a recurrent drafter: --speculative-model redrafter"
        )
        group.add_argument(
            "--speculative-model",
            dest="spec_model",
            metavar="NAME",
            default=None,
            help="Drafter for speculative decoding: the word 'redrafter' (finds the drafter trained for this model), a "
            "directory or a hub id. The same as --speculative-config '{\"model\": NAME}', which takes the drafting "
            "options as well.",
        )
        return parser

    return add_cli_args
