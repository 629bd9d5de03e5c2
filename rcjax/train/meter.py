"""How fast training goes, measured by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from rcjax.data.loader import StepBatch
from rcjax.model import LlamaConfig
from rcjax.model.flops import forward_flops
from rcjax.views import Work

BACKWARD = 2  # products of the backward pass for each one of the forward pass


@dataclasses.dataclass(frozen=True)
class Meter:
    """Turns a step's batch and its wall time into rates.

    Attributes:
      model: that is trained.
      teacher: another network that teaches, or None.
      peak: operations a second that the devices could do, ``model.flops.peak_flops``.
    """

    model: LlamaConfig
    teacher: LlamaConfig | None
    peak: float

    def rates(self, batch: StepBatch, seconds: float, waited: float) -> Mapping[str, float]:
        """Numbers for metrics.jsonl.

        Args:
          seconds: of the step, from one to the next.
          waited: of these, for the batch.

        Returns:
          ``examples_per_second``, ``tokens_per_second``; ``flops_per_second``, useful operations: those that the
          formulas ask for on the tokens in use, with no padding and nothing computed twice; ``utilisation``, their
          share of the peak; ``flops_spared``, the share that leaving hidden tokens out saved; ``input_wait``, the
          share of the time in which the step waited for its batch.
        """
        useful = self._train(batch.work)
        if self.teacher is not None:
            useful += forward_flops(self.teacher, **dataclasses.asdict(batch.taught))
        spared = self._train(batch.spared)
        return {
            "examples_per_second": batch.metrics["examples"] / seconds,
            "tokens_per_second": batch.metrics["tokens"] / seconds,
            "flops_per_second": useful / seconds,
            "utilisation": useful / seconds / self.peak,
            "flops_spared": spared / (useful + spared),
            "input_wait": waited / seconds,
        }

    def _train(self, work: Work) -> float:
        return (1 + BACKWARD) * forward_flops(self.model, **dataclasses.asdict(work))
