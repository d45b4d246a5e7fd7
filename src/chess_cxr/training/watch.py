"""Watch a run on its first rank: log its numbers, measure held-out films, warn of skipped steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from chess_cxr.training.loop import StepReport, TrainingConfig
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
        training: TrainingConfig,
        measure: Callable[[int], Mapping[str, float]],
        is_over: Callable[[], bool] = lambda: False,
        scale: SpeedScale | None = None,
    ) -> None:
        self.log, self.probe = log, dict[str, float]()
        self._training, self._measure, self._is_over = training, measure, is_over
        self._scale, self._told_skipped, self._over = scale, 0, False
        self._reports: list[StepReport] = []

    @property
    def is_over(self) -> bool:
        """Whether the numbers of held-out films end the run."""
        return self._over

    @property
    def has_collapsed(self) -> bool:
        """Whether training has failed for good; never, unless a subclass says so."""
        return False

    def look(self, report: StepReport) -> None:
        """Measure and log what is due after a step."""
        training, step, last = self._training, report.step, report.step == self._training.steps
        values = dict[str, float]()
        skipped_step, problem = report.newest_skipped
        if skipped_step > self._told_skipped:
            self._told_skipped = skipped_step
            self.log.say(f"step {skipped_step} was skipped: {problem}; {report.skipped_steps} so far")
        self._reports.append(report)
        if last or step % training.log_every == 0:
            values = self.log.summarise(self._reports, training.batch, self._scale)
            self._reports.clear()
        if last or step % training.probe_every == 0:
            self.probe = {name: value for name, value in self._measure(step).items() if math.isfinite(value)}
            values |= self.probe
            self._over = self._is_over()
        if values:
            self.log.write(step, values)
            self.judge(step, values)

    def judge(self, step: int, values: Mapping[str, float]) -> None:
        """Judge the logged numbers of a step; a subclass may warn."""
