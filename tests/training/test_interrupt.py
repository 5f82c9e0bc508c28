"""Signals before and during training."""

import os
import signal

import pytest

from eosjax.training import interrupt


@pytest.fixture(autouse=True)
def usual_signals(monkeypatch):
    monkeypatch.setattr(interrupt, "_interrupted", interrupt.Flag())
    usual = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, usual)


def test_ctrl_c_before_training_is_not_lost():
    interrupt.stop_at_once()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    # As if a callback of a library had swallowed it
    with pytest.raises(KeyboardInterrupt), interrupt.stop_signals():
        pytest.fail("training has begun")


def test_in_training_the_first_signal_raises_the_flag_and_the_second_acts_as_usual():
    interrupt.stop_at_once()
    with interrupt.stop_signals() as stopped:
        assert not stopped(0)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
