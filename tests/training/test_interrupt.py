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


def test_of_several_processes_each_numbers_its_questions_from_1(monkeypatch):
    """A resumed run asks at updates far from 0, the number from which the service counts where nobody has asked."""
    asked = []
    monkeypatch.setattr("jax.process_count", lambda: 2)
    monkeypatch.setattr(
        "jax.experimental.multihost_utils.reached_preemption_sync_point", lambda number: asked.append(number) or number == 3
    )
    with interrupt.stop_signals() as stopped:
        assert [stopped(step) for step in (70, 71, 72)] == [False, False, True]
    assert asked == [1, 2, 3]
