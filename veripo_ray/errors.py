"""Errors a user can act on: what is wrong, the value seen, and the fix."""

from __future__ import annotations


class VeripoError(Exception):
    """Base of every error that is the user's to mend; the command prints it without a traceback."""

    def __init__(self, problem: str, *, fix: str = "") -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem}\n  fix: {self.fix}" if self.fix else self.problem

    def __reduce__(self) -> tuple:  # keyword arguments survive a trip between processes
        return _rebuild, (type(self), self.problem, self.fix)


def _rebuild(kind: type[VeripoError], problem: str, fix: str) -> VeripoError:
    return kind(problem, fix=fix)


class ConfigError(VeripoError):
    """A setting is unknown, of the wrong type, or at odds with another."""


class DataError(VeripoError):
    """A question, a video or a file of them cannot be used."""


class CheckpointError(VeripoError):
    """A model checkpoint is missing, incomplete or of an unsupported family."""


class ResourceError(VeripoError):
    """The machine or the cluster lacks something the run needs."""


class TakenOver(VeripoError):
    """A newer attempt at the same run has begun: this one may not write any more."""


class LostError(ResourceError):
    """An actor of the run, or what it had made, is gone: its process or its node has ended."""


class LostObjectError(LostError):
    """An actor that lives could not fetch an object: the node that held it is gone."""


class EngineError(VeripoError):
    """vLLM failed in the middle of a step. Its worker is good for nothing more."""


class StorageError(VeripoError):
    """A store (S3, GCS, ...) does not give or take what the run keeps there."""


class PrecisionError(VeripoError):
    """Rollout worker and learner disagree on the log-probability of the same tokens."""


class ScoringError(VeripoError):
    """An answer could not be compared with the gold one. Its group is masked, never scored 0."""
