"""A signal ends the command at once while there is nothing to save, and is a wish after that."""

from __future__ import annotations

import os
import signal

import pytest

from cluster.stopping import Stop, StoppedAtOnce


def _send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def test_a_signal_before_there_is_anything_to_save_ends_the_command() -> None:
    with pytest.raises(StoppedAtOnce) as ended, Stop():
        _send(signal.SIGTERM)
    assert ended.value.code == 143


def test_the_first_signal_is_noted_and_the_second_ends_the_command() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Stop() as stop:
        stop.patient = True
        _send(signal.SIGTERM)
        assert (stop.name, stop.status) == ("SIGTERM", 143)
        with pytest.raises(StoppedAtOnce) as ended:
            _send(signal.SIGINT)
    assert ended.value.code == 130
    assert signal.getsignal(signal.SIGINT) is before


def test_it_hears_signals_again_where_somebody_has_put_a_handler_in_its_place() -> None:
    """As Ray does when it starts."""
    with Stop() as stop:
        stop.patient = True
        others = signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with stop:
            _send(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
        signal.signal(signal.SIGTERM, others)
