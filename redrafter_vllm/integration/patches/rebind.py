# SPDX-License-Identifier: Apache-2.0
"""Every name of vLLM's that the plugin rebinds: target, reason, and when it can go.

All were written for vLLM >=0.32,<0.34, and all answer as vLLM does unless the method is ReDrafter.
"""

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

from redrafter_vllm.config import OptionError
from redrafter_vllm.integration.frontend.error_hook import end_in_one_sentence
from redrafter_vllm.integration.start_errors import expect_start_errors, raise_what_was_told, tells_the_front
from redrafter_vllm.integration.target_support import UnsupportedTargetError
from redrafter_vllm.integration.versions import UnsupportedVllmError
from redrafter_vllm.integration.vllm_interface import InterfaceChangedError, rebound
from redrafter_vllm.request_settings import KEY, parse_request_settings
from redrafter_vllm.utils.messages import shown

_MARK = "_redrafter_original"
_GPU = "vllm.v1.worker.gpu"


def rebind(owner: Any, name: str, make: Callable[[Any], Any], parameters: str | None = None) -> None:
    """Replace `owner.name` by `make(original)`, once per process.

    `parameters` are the names that the original must take, separated by spaces; None asks no questions.

    Raises:
        InterfaceChangedError: The name is gone or takes other parameters.
    """
    place = f"{getattr(owner, '__name__', owner)}.{name}"
    original = vars(owner).get(name)
    if original is None:
        raise _interface_changed(place, "does not have")
    function = original.__func__ if isinstance(original, (classmethod, staticmethod)) else original
    if hasattr(function, _MARK):
        return
    if parameters is not None and list(inspect.signature(function).parameters) != parameters.split():
        raise _interface_changed(place, f"has with other parameters than ({', '.join(parameters.split())})")
    replacement = functools.wraps(function)(make(function))
    setattr(replacement, _MARK, function)
    setattr(owner, name, type(original)(replacement) if function is not original else replacement)


def _interface_changed(place: str, how: str) -> InterfaceChangedError:
    return InterfaceChangedError(
        f"redrafter-vllm rebinds {place}, which this vLLM {how}; install a vLLM version listed in docs/design/vllm_interface.md."
    )


def rebind_interface(target: str, make: Callable[[Any], Any]) -> None:
    """Rebind an entry of the list of interfaces, which says what parameters it must take.

    Raises:
        InterfaceChangedError: Its module or name is gone, or it takes other parameters.
    """
    interface = rebound(target)
    *owners, name = interface.path.split(".")
    try:
        owner = importlib.import_module(interface.module)
        for part in owners:
            owner = getattr(owner, part)
    except (ImportError, AttributeError) as error:
        raise _interface_changed(target, "does not have") from error
    rebind(owner, name, make, interface.parameters)


def add_method(target: str, method: Callable) -> None:
    """Give a class of vLLM's a method that it does not have.

    Raises:
        InterfaceChangedError: The class is gone, or has one of that name.
    """
    module, _, name = target.partition(":")
    owner = getattr(importlib.import_module(module), name, None)
    if owner is None:
        raise _interface_changed(target, "does not have")
    if getattr(owner, method.__name__, method) is not method:
        raise _interface_changed(target, f"has with a {method.__name__} of its own")
    setattr(owner, method.__name__, method)


def install_front() -> None:
    """What every process needs to recognise the method; installed when the plugin loads."""
    # vLLM knows its speculative methods by a closed list. Can go when it has a registry of methods.
    rebind_interface("vllm.engine.arg_utils:EngineArgs.create_speculative_config", _create_speculative_config)
    # `--speculative-model NAME`, vLLM's own flag once. Can go with nothing lost: `--spec-model` means the same.
    rebind_interface("vllm.engine.arg_utils:EngineArgs.add_cli_args", _add_cli_args)


def install_runner() -> None:
    """What serving with the method needs; installed when its configuration is built or arrives in a process."""
    from vllm.platforms import current_platform

    # The runner imports these two by name. Can go when a method can name its speculator and model state.
    rebind_interface("vllm.v1.worker.gpu.model_runner:init_speculator", _init_speculator)
    rebind_interface("vllm.v1.worker.gpu.model_runner:init_model_state", _init_model_state)
    # CUSTOM names one class, and which of ours can serve depends on device, type and head size; besides, the CPU
    # platform answers CPU_ATTN whatever is selected. Can go when a custom backend may choose, and is honoured on CPUs.
    name = "get_attn_backend_cls"
    if current_platform.is_cpu():
        rebind_interface(f"vllm.platforms.cpu:CpuPlatform.{name}", _attn_backend)
    else:
        parameters = rebound(f"vllm.platforms.cuda:CudaPlatformBase.{name}").parameters
        rebind(_owner(type(current_platform), name), name, _attn_backend, parameters)
    # vLLM's rejection sampler ignores min_p and logit_bias, so it refuses them; the walk runs its whole sampler.
    # Can go when the refusal asks the method. Also where a request's own settings are checked.
    rebind_interface("vllm.sampling_params:SamplingParams._validate_spec_decode", _validate_spec_decode)
    # A waiting request of one token is padded with placeholder drafts, and vLLM scores them as its prompt. No step of a
    # plain engine has drafts. Can go when vLLM leaves them out.
    rebind_interface(
        "vllm.v1.worker.gpu.sample.prompt_logprob:PromptLogprobsWorker.compute_prompt_logprobs", _prompt_logprobs
    )
    allow_async_scheduling()
    # Runner V2 names one adapter a request for the LM head, which has a row for every draft as well. Can go when it
    # counts those.
    rebind_interface("vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin._set_active_loras", _set_active_loras)
    # The front end does not learn why an engine's process has ended. Can go when vLLM hands the error on.
    rebind_interface("vllm.v1.engine.utils:wait_for_engine_startup", raise_what_was_told)
    install_request_settings()
    install_sessions()
    install_metrics()
    install_new_weights()


def allow_async_scheduling() -> None:
    """Let `VllmConfig` schedule asynchronously with this method, as it does with EAGLE.

    It knows the methods that it may do so with by closed lists, one of which it reads for nothing else. The method
    meets what they do: drafts stay on the device, the scheduler counts placeholders, and no shape depends on how many
    of them were accepted. Can go when the configuration asks the method.

    Raises:
        InterfaceChangedError: The list is gone or holds other methods.
    """
    from vllm.config import vllm as vllm_config

    methods = get_args(getattr(vllm_config, "NgramGPUTypes", None))
    if "redrafter" in methods:
        return
    if methods != ("ngram_gpu",):
        raise _interface_changed("vllm.config.vllm.NgramGPUTypes", f"has as {methods}, not as ('ngram_gpu',)")
    vllm_config.NgramGPUTypes = Literal["ngram_gpu", "redrafter"]


def install_request_settings() -> None:
    """A request's own settings: from the body of an HTTP request to the slots that the scheduler gives it."""
    from redrafter_vllm.integration.scheduler import draft_limits

    # `vllm_xargs`, vLLM's own way to extra arguments, takes no nested objects. Can go when it does.
    openai = "vllm.entrypoints.openai"
    rebind_interface(f"{openai}.chat_completion.protocol:ChatCompletionRequest.to_sampling_params", _to_sampling_params)
    rebind_interface(f"{openai}.completion.protocol:CompletionRequest.to_sampling_params", _to_sampling_params)
    rebind_interface(f"{openai}.responses.protocol:ResponsesRequest.to_sampling_params", _to_sampling_params)
    # Every request gets as many draft slots as the engine has. Can go when a request can ask for fewer.
    scheduling = "vllm.v1.core.sched"
    rebind_interface(f"{scheduling}.scheduler:Scheduler.update_draft_token_ids", draft_limits.limit_after_drafting)
    rebind_interface(
        f"{scheduling}.async_scheduler:AsyncScheduler._update_after_schedule", draft_limits.limit_placeholders
    )


def install_sessions() -> None:
    """Sessions whose prompt comes in parts go on where plain vLLM would, whatever has been accepted behind a stop."""
    from redrafter_vllm.integration.scheduler import sessions

    # These can go when vLLM 0.32 is gone: 0.33 counts by tokens, and queues a session that goes on once.
    scheduler = "vllm.v1.core.sched.scheduler:Scheduler"
    rebind_interface(f"{scheduler}._update_request_with_output", sessions.settle_computed)
    rebind_interface(f"{scheduler}._update_request_as_session", sessions.cut_by_tokens)
    rebind_interface(f"{scheduler}._handle_stopped_request", sessions.remember_preempted)
    # Can go when vLLM refuses a part for which its session has no room, and survives log-probabilities that come late.
    rebind_interface("vllm.v1.engine.async_llm:AsyncLLM._add_request", sessions.refuse_parts)


def install_metrics() -> None:
    """Our counters, and what vLLM's own need to count nodes instead of slots."""
    from redrafter_vllm.integration import metrics
    from redrafter_vllm.integration.frontend import prometheus as metrics_prometheus

    # All can go when a speculator can hand statistics of its own to the scheduler, and these reach the stat loggers.
    rebind_interface("vllm.v1.worker.gpu.async_utils:AsyncOutput.get_output", metrics.report_from_worker)
    scheduler = "vllm.v1.core.sched.scheduler:Scheduler"
    rebind_interface(f"{scheduler}.update_from_output", _update_from_output)
    rebind_interface(f"{scheduler}.make_spec_decoding_stats", metrics.count_slots)
    # Stop strings are found where text is made, after the engine has counted. Can go when vLLM counts behind them.
    processor = "vllm.v1.engine.output_processor:OutputProcessor"
    rebind_interface(f"{processor}.process_outputs", metrics.note_stop_strings)
    rebind_interface(f"{processor}.update_scheduler_stats", metrics.count_stop_strings)
    prometheus = "vllm.v1.spec_decode.metrics:SpecDecodingProm"
    rebind_interface(f"{prometheus}.__init__", metrics_prometheus.create_counters)
    rebind_interface(f"{prometheus}.observe", metrics_prometheus.observe_counters)


def _update_from_output(original: Callable) -> Callable:
    from redrafter_vllm.integration import metrics
    from redrafter_vllm.integration.scheduler import sessions

    return sessions.queue_preempted(metrics.read_report(original))


def install_new_weights() -> None:
    """A draft model of which vLLM's workers know, and a method of theirs that replaces the drafter."""
    from redrafter_vllm.integration.worker import new_weights

    # All but the last can go when a speculator of any kind can name its draft model, and be told of new weights.
    rebind_interface(f"{_GPU}.model_runner:GPUModelRunner.get_draft_model", new_weights.give_draft_model)
    # What vLLM calls wherever the target has got new weights, for what was made from the old ones.
    rebind_interface(
        "vllm.v1.worker.lora_model_runner_mixin:LoRAModelRunnerMixin.reset_lora_state", new_weights.follow_target
    )
    # An update of a draft model loads as it arrives; ours is checked as a whole.
    rebind_interface("vllm.v1.worker.gpu_worker:Worker.start_draft_weight_update", new_weights.begin_update)
    rebind_interface("vllm.v1.worker.gpu_worker:Worker.finish_weight_update", new_weights.finish_update)
    add_method("vllm.v1.worker.gpu_worker:Worker", new_weights.reload_drafter)


def install_refusal(message: str) -> None:
    """On a vLLM that the interface does not know, only make a request for ReDrafter fail with `message`."""
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


def _create_speculative_config(original: Callable) -> Callable:
    def create_speculative_config(self: Any, target_model_config: Any, target_parallel_config: Any) -> Any:
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
        from redrafter_vllm.integration.frontend.speculative_config import build_speculative_config

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
        check_engine(self, config)
        if not config.drafting.is_chain:
            select_tree_attention(self)
        expect_start_errors()
        return config

    return create_speculative_config


def check_engine(engine_args: Any, config: Any) -> None:
    """Refuse what the engine is to do besides, where vLLM would fail later or the output would not be its own."""
    from redrafter_vllm.integration.target_support import check_step_limits, check_transfer

    has_connector = engine_args.kv_transfer_config is not None or engine_args.kv_offloading_size is not None
    check_transfer(has_connector, config.drafting)
    # By a schedule of budgets the scheduler pads nothing.
    if not config.num_speculative_tokens_per_batch_size:
        names = "max_num_batched_tokens", "max_num_scheduled_tokens", "long_prefill_token_threshold"
        limits = {name: getattr(engine_args, name) for name in names}
        check_step_limits(limits, config.num_speculative_tokens)


def select_tree_attention(engine_args: Any) -> None:
    """Make the engine's attention backend ours; a backend that the user chose cannot be honoured."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum

    chosen = engine_args.attention_backend or engine_args.attention_config.backend
    if chosen not in (None, "CUSTOM", AttentionBackendEnum.CUSTOM):
        name = getattr(chosen, "name", chosen)
        raise UnsupportedTargetError(
            f"ReDrafter's trees need their own attention backend, but {name} was chosen; leave the attention backend "
            "unset, or draft chains (beam_width=1)."
        )
    register_tree_attention()
    if engine_args.attention_config.backend is None:
        engine_args.attention_backend = AttentionBackendEnum.CUSTOM


def register_tree_attention() -> None:
    """Put a backend of ours in vLLM's slot for custom backends of this process; which of them serves shows later."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend

    from redrafter_vllm.integration.attention.select import candidates, is_ours

    custom = AttentionBackendEnum.CUSTOM
    if custom.is_overridden() and not is_ours(custom.get_path()):
        raise UnsupportedTargetError(
            f"ReDrafter's trees need vLLM's CUSTOM attention backend, which {custom.get_path()} has taken; unload that "
            "plugin or draft chains (beam_width=1)."
        )
    register_backend(custom, candidates()[0])


def _add_cli_args(original: Callable) -> Callable:
    def add_cli_args(parser: Any) -> Any:
        parser = original(parser)
        if "--speculative-model" in parser._option_string_actions:
            return parser
        end_in_one_sentence()
        # Plain `--help` lists groups, not flags: a group of its own puts the flag where users look first.
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


def _init_speculator(original: Callable) -> Callable:
    @tells_the_front
    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        if not _is_ours(vllm_config):
            return original(vllm_config, device, req_states)
        from redrafter_vllm.integration.target_support import check_pipeline
        from redrafter_vllm.integration.worker.speculator import RedrafterSpeculator

        check_pipeline(
            vllm_config.parallel_config.pipeline_parallel_size, vllm_config.scheduler_config.async_scheduling
        )

        if not vllm_config.speculative_config.drafting.is_chain:
            register_tree_attention()
        return RedrafterSpeculator(vllm_config, device)

    return init_speculator


def _init_model_state(original: Callable) -> Callable:
    @tells_the_front
    def init_model_state(vllm_config: Any, model: Any, encoder_cache: Any, device: Any) -> Any:
        if not _is_ours(vllm_config):
            return original(vllm_config, model, encoder_cache, device)
        from vllm.distributed.parallel_state import get_pp_group

        if not get_pp_group().is_last_rank:
            from redrafter_vllm.integration.worker.parallel import send_embedding

            # Only chains are drafted here, for which a stage that samples nothing has nothing to do.
            send_embedding(model)
            return original(vllm_config, model, encoder_cache, device)
        from redrafter_vllm.integration.worker.model_state import RedrafterModelState

        return RedrafterModelState(vllm_config, model, encoder_cache, device)

    return init_model_state


def _owner(cls: type, name: str) -> type:
    """The class, of `cls` and its bases, that defines `name`."""
    return next((base for base in cls.__mro__ if name in vars(base)), cls)


def _attn_backend(original: Callable) -> Callable:
    @tells_the_front
    def get_attn_backend_cls(
        cls: Any, selected_backend: Any, attn_selector_config: Any, *args: Any, **kwargs: Any
    ) -> str:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum

        from redrafter_vllm.integration.attention.select import is_ours, select

        custom = AttentionBackendEnum.CUSTOM
        if selected_backend == custom and custom.is_overridden() and is_ours(custom.get_path()):
            return select(attn_selector_config)
        return original(cls, selected_backend, attn_selector_config, *args, **kwargs)

    return get_attn_backend_cls


def _validate_spec_decode(original: Callable) -> Callable:
    def _validate_spec_decode(self: Any, speculative_config: Any) -> None:
        if getattr(speculative_config, "method", None) != "redrafter":
            original(self, speculative_config)
            return
        # Here and not in the engine: an error becomes that of the call, or the server's status 400.
        from vllm.exceptions import VLLMValidationError

        try:
            parse_request_settings(self.extra_args, speculative_config.drafting)
        except OptionError as error:
            raise VLLMValidationError(str(error), parameter=KEY) from error

    return _validate_spec_decode


def _prompt_logprobs(original: Callable) -> Callable:
    def compute_prompt_logprobs(
        self: Any, logits_fn: Any, hidden_states: Any, input_batch: Any, *args: Any
    ) -> dict[str, Any]:
        found = original(self, logits_fn, hidden_states, input_batch, *args)
        num_drafts = input_batch.num_draft_tokens_per_req
        if not found or num_drafts is None:
            return found
        for req_id, count in zip(input_batch.req_ids, num_drafts.tolist(), strict=True):
            if count and req_id in found:
                scores = found.pop(req_id)
                if scores.logprobs.shape[0] > count:
                    found[req_id] = type(scores)(*(rows[:-count] for rows in scores[:3]))
        return found

    return compute_prompt_logprobs


def _set_active_loras(original: Callable) -> Callable:
    def _set_active_loras(self: Any, prompt_lora_mapping: tuple[int, ...], *args: Any, **kwargs: Any) -> None:
        # Profiling sets adapters before there is a model state.
        state = getattr(self, "model_state", None)
        if state is not None and hasattr(state, "per_logits_row"):
            prompt_lora_mapping = state.per_logits_row(prompt_lora_mapping)
        original(self, prompt_lora_mapping, *args, **kwargs)

    return _set_active_loras


def _to_sampling_params(original: Callable) -> Callable:
    def to_sampling_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        params = original(self, *args, **kwargs)
        settings = (self.model_extra or {}).get(KEY)
        if settings is not None:
            params.extra_args = {**(params.extra_args or {}), KEY: settings}
        return params

    return to_sampling_params


def _is_ours(vllm_config: Any) -> bool:
    spec = vllm_config.speculative_config
    return spec is not None and spec.method == "redrafter"
