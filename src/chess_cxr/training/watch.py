"""Watch a run on its first rank: log its numbers, measure held-out films, warn of skipped steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from chess_cxr.training.loop import Method, StepReport, TrainingConfig
from chess_cxr.training.run_log import RunLog
from chess_cxr.training.speed import SpeedScale


class RunWatch:
    """Logs a run's numbers, and measures held-out films at every `probe_every` steps and at the last.

    measure: called with the step; returns numbers by name and leaves the weights unchanged.
    is_over: whether these numbers end the run.  scale: to log the speed as a share of the machine's peak.
    probe: the newest finite numbers of `measure`.
    """

    def __init__(
        self,
        log: RunLog,
        method: Method,
        training: TrainingConfig,
        measure: Callable[[int], Mapping[str, float]],
        is_over: Callable[[], bool] = lambda: False,
        scale: SpeedScale | None = None,
    ) -> None:
        self.log, self.probe = log, dict[str, float]()
        self._method, self._training, self._measure, self._is_over = method, training, measure, is_over
        self._scale, self._told_skipped = scale, 0

    @property
    def is_over(self) -> bool:
        """Whether the numbers of held-out films end the run."""
        return self._is_over()

    @property
    def has_collapsed(self) -> bool:
        """Whether training has failed for good; never, unless a subclass says so."""
        return False

    def look(self, report: StepReport) -> None:
        """Measure and log what is due after a step."""
        training, step, last = self._training, report.step, report.step == self._training.steps
        values = dict[str, float]()
        if report.problem and report.skipped_steps > self._told_skipped:  # an overflow in float16 is normal
            self._told_skipped = report.skipped_steps
            self.log.say(f"step {step} was skipped: {report.problem}; {report.skipped_steps} so far")
        if last or step % training.log_every == 0:
            values = self.log.summarise(report, self._method.signals, training.batch, self._scale)
        if last or step % training.probe_every == 0:
            self.probe = {name: value for name, value in self._measure(step).items() if math.isfinite(value)}
            values |= self.probe
        if values:
            self.log.write(step, values)
            self.judge(step, values)

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Judge the logged numbers of a step; a subclass may warn."""
