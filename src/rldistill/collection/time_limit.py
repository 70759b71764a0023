"""Time limit of single calls of a teacher."""

import faulthandler
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import Tensor

from rldistill.core.errors import ConfigError
from rldistill.core.policy import PolicyOutput, PolicyWrapper
from rldistill.core.spec import Obs
from rldistill.policies.agent import is_row_wise

GRACE_S = 10.0
"""Time after the limit for code that handles signals late; then the process ends with the line where it hangs."""


class _Overdue(BaseException):
    """Raised by the signal; no Exception, which the code of a teacher might catch."""


@dataclass(frozen=True)
class TimeLimitedPolicy(PolicyWrapper):
    """Policy whose calls raise ConfigError after `seconds`; of a policy with one call for each row, each of these."""

    seconds: float

    def __call__(self, obs: Obs, state: Tensor | None = None) -> tuple[PolicyOutput, Tensor | None]:
        """Return the output of the policy, and its next state."""
        if isinstance(obs, Tensor) and len(obs) > 1 and is_row_wise(self.policy):
            rows = [self(row[None])[0] for row in obs]
            masks = [row.mask for row in rows if row.mask is not None]
            params = torch.cat([row.params for row in rows])
            return PolicyOutput(rows[0].head, params, mask=torch.cat(masks) if masks else None), None
        with time_limit(self.seconds):
            return self.policy(obs, state)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise ConfigError if the block takes longer; only the main thread can, since it uses SIGALRM.

    C code that never returns to Python receives no signal: it is ended with the process, after `GRACE_S` more.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(
            "collect.teacher_timeout: only the main thread can stop a teacher. Collect there, or with two workers."
        )

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Overdue

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, in case that the code catches everything
    faulthandler.dump_traceback_later(seconds + GRACE_S, exit=True)
    try:
        yield
    except _Overdue:
        raise ConfigError(
            f"collect.teacher_timeout: the teacher took over {seconds:g} s for one decision. Raise the limit, or use a "
            "faster teacher."
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        faulthandler.cancel_dump_traceback_later()
