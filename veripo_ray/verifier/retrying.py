"""How the verifier's client tries again: what may pass by itself, how long it waits, and when it
gives up. By hand, since a stream goes on where it broke, which no decorator of calls can."""

from __future__ import annotations

import random
import time

import httpx

from veripo_ray.errors import DataError, ResourceError

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


class TryAgainError(Exception):
    """What may pass by itself: nobody listens yet, the verifier is busy or restarting. after:
    seconds that it asked to wait."""

    def __init__(self, problem: str, after: float = 0.0) -> None:
        super().__init__(problem)
        self.after = after

    @classmethod
    def of(cls, error: httpx.TransportError) -> TryAgainError:
        name = type(error).__name__
        return cls(f"{name}: {error}" if str(error) else name)


def checked(reply: httpx.Response) -> httpx.Response:
    """A reply that has been read, where it is a good one. Raises TryAgainError, or DataError for a
    refusal that will stay one."""
    if reply.is_success:
        return reply
    problem, fix = _told(reply)
    problem = f"it answered {reply.status_code}: {problem}"
    if reply.status_code in _PASSING:
        after = reply.headers.get("retry-after", "")
        raise TryAgainError(problem, float(after[:6]) if after.isdecimal() else 0.0)
    raise DataError(problem, fix=fix or "correct the items, or send fewer at once")


def _told(reply: httpx.Response) -> tuple[str, str]:
    """Problem and fix as the endpoint puts them; as text, where something else answered."""
    try:
        message = reply.json()
        return str(message["error"])[:300], str(message.get("fix", ""))[:300]
    except (ValueError, TypeError, KeyError, AttributeError):
        return reply.text[:300], ""


class Attempts:
    """Of one request: exponential waits with jitter, at least what the server asked for, within
    `timeout_s` seconds from now on."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._url, self._timeout_s = url, timeout_s
        self._deadline, self._made = time.monotonic() + timeout_s, 0

    @property
    def left_s(self) -> float:
        return self._deadline - time.monotonic()

    @property
    def timeout_s(self) -> float:
        """Of the next attempt."""
        return max(0.1, self.left_s)

    def wait_s(self, error: TryAgainError) -> float:
        """Until the next attempt, after this one failed. Raises ResourceError when time is up."""
        self._made += 1
        if self.left_s <= 0:
            raise ResourceError(
                f"the verifier at {self._url} gave no answer within {self._timeout_s:g} s "
                f"({self._made} attempts): {error}",
                fix="check that it runs (GET /healthz), raise verifier.timeout_s or "
                "verifier.replicas",
            ) from error
        doubled = _FIRST_WAIT_S * 2 ** min(self._made - 1, 16)
        wanted = min(doubled, _LONGEST_WAIT_S) * random.uniform(0.5, 1.5)
        return max(0.0, min(max(wanted, error.after), self.left_s))
