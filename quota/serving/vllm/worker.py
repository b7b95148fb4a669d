"""vLLM's worker, which tells the model whose the rows of a pass are."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from quota.serving.vllm.batch import parts_of


class TellingWorker(CPUWorker):
    """For models that must know the requests of a pass."""

    def init_device(self) -> None:
        """Make the model runner, which has these two methods to be overridden."""
        super().init_device()
        runner: Any = self.model_runner
        forward = runner._model_forward

        def told(*args: Any, **kwargs: Any) -> Any:
            runner.model.parts = parts_of(runner)
            return forward(*args, **kwargs)

        runner._model_forward = told
        runner._on_request_state_removed = lambda request, state: runner.model.decoder.turns.forget(request)
