# SPDX-License-Identifier: Apache-2.0
"""The worker of an engine that drafts with ReDrafter: vLLM's own, derived, by its option `worker_cls`."""

from typing import Any

from vllm.v1.worker.gpu_worker import Worker

from redrafter_vllm.integration.worker.new_weights import reload_drafter


class RedrafterWorker(Worker):
    """vLLM's worker for GPUs. `collective_rpc` calls its methods by name."""

    def _make_model_runner(self) -> Any:
        if not self.use_v2_model_runner:
            return super()._make_model_runner()  # which refuses the method
        from redrafter_vllm.integration.worker.runner import RedrafterRunner

        return RedrafterRunner(self.vllm_config, self.device)

    def reload_drafter(self, path: str) -> None:
        """Draft with the checkpoint at `path` from the next round on; see `new_weights.reload_drafter`."""
        reload_drafter(self, path)

    def start_draft_weight_update(self) -> None:
        """Drop what an update that was not finished has left."""
        super().start_draft_weight_update()
        self.get_draft_model().begin_update()

    def finish_weight_update(self) -> None:
        """An update of the drafter takes effect here, if it is complete and valid; vLLM's do as they arrive."""
        is_draft = self._weight_update_is_draft
        super().finish_weight_update()
        if is_draft:
            self.get_draft_model().finish_update()
