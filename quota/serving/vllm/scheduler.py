"""vLLM's scheduler, with two things added: managers see the requests, and a prompt is prefilled whole or not yet.

The second is vLLM's own rule without chunked prefill, but for one case: where the tower has no time left in a step, it
would prefill the words in front of a picture.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

from quota.serving.vllm.manager import KeptManager


class WholePromptScheduler(Scheduler):
    """For models whose prefill drops tokens by what the whole prompt says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        managers: Any = self.kv_cache_manager.coordinator.single_type_managers
        for manager in managers:
            if isinstance(manager, KeptManager):
                manager.requests = self.requests

    def _try_schedule_encoder_inputs(
        self,
        request: Request,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> tuple[list[int], int, int, list[int], list[int]]:
        found = super()._try_schedule_encoder_inputs(
            request, num_computed_tokens, num_new_tokens, encoder_compute_budget, shift_computed_tokens
        )
        return found if found[1] == num_new_tokens else ([], 0, encoder_compute_budget, [], [])
