"""How much of the waiting prompts one step computes."""

from __future__ import annotations

# Tokens of prompts computed in one step when nothing decodes.
PREFILL_CHUNK_IDLE = 2048
# And beside rows that decode, for prompts that this completes: each is one longer gap. For others see Pace.
PREFILL_CHUNK_BUSY = 256

_FIRST_CHUNK = 16
_LEAST_CHUNK = 4
# A step with a chunk may take so many times as long as one without. The goal is three; steps vary.
_STRETCH = 2.6
# A chunk grows by this at most from one step to the next: a step that was quick by chance does not double it.
_GROWTH = 1.25
# Weight of the newest step in the running mean of undisturbed ones.
_NEWEST = 0.1


class Pace:
    """Sizes chunks so that the gap between two tokens of the rows that decode stays bounded, whatever the model, the
    device and the number of rows: from how long steps take."""

    def __init__(self) -> None:
        self._quiet = 0.0
        self._chunk = _FIRST_CHUNK
        self._last_was_quiet = False
        # Tokens that the last step has launched and this one waits for.
        self._launched = 0

    @property
    def chunk(self) -> int:
        """Tokens of a long prompt for the next step, beside rows that decode."""
        return self._chunk

    @property
    def needs_a_quiet_step(self) -> bool:
        """Whether nothing is known yet of a step without prompts."""
        return not self._quiet

    def step(self, seconds: float, tokens: int, waited_for: bool) -> None:
        """A step has decoded and computed `tokens` of prompts, which the next step waits for if this one has not."""
        before, self._launched = self._launched, 0 if waited_for else tokens
        if waited_for and not before:
            if tokens:
                self._busy_step(seconds, tokens)
            else:
                self._quiet_step(seconds)
            return
        self._last_was_quiet = False
        # How much of the launched is waited for in the step itself depends on the device. Among steps that all launch
        # it makes no difference; one that waits for two pieces tells of neither.
        if before and tokens and not waited_for:
            self._busy_step(seconds, before)

    def _quiet_step(self, seconds: float) -> None:
        # The first after a disturbed one finds its work done already.
        if self._last_was_quiet:
            self._quiet = self._quiet + _NEWEST * (seconds - self._quiet) if self._quiet else seconds
        self._last_was_quiet = True

    def _busy_step(self, seconds: float, tokens: int) -> None:
        self._last_was_quiet = False
        if not self._quiet:
            return
        allowed = (_STRETCH - 1) * self._quiet
        taken = seconds - self._quiet
        fitting = tokens * allowed / max(taken, allowed / _LEAST_CHUNK)
        if taken <= allowed:
            # The few tokens that end a prompt cost more each: they do not tell that a whole chunk is too much.
            fitting = max(fitting, self._chunk)
        # Upwards by steps: what a chunk costs does not grow evenly with its size.
        self._chunk = int(
            min(max(fitting, _LEAST_CHUNK), max(_GROWTH * self._chunk, self._chunk + 1), PREFILL_CHUNK_IDLE)
        )
