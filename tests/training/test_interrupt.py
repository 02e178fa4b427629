"""Proves that the first Ctrl-C is a wish, the second an order, and that both leave the process as it was."""

import signal
import threading

import pytest

from tunesmith.training.interrupt import Interrupt, interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_nothing_is_raised(number: signal.Signals) -> None:
    with interruptible() as interrupt:
        assert not interrupt.asked
        signal.raise_signal(number)
        assert interrupt.asked


@pytest.mark.parametrize("first", SIGNALS)
@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_is_raised(first: signal.Signals, second: signal.Signals) -> None:
    with interruptible() as interrupt:
        signal.raise_signal(first)
        assert interrupt.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)


def test_handlers_are_as_before_after_a_quiet_end() -> None:
    before = handlers()
    with interruptible():
        assert handlers() != before
    assert handlers() == before


def test_handlers_are_as_before_after_an_interruption_or_an_error() -> None:
    before = handlers()
    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error), interruptible():
            raise error
        assert handlers() == before


def test_after_the_block_ctrl_c_is_ctrl_c_again() -> None:
    with interruptible() as interrupt:
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert interrupt.asked


def test_one_run_s_interruption_is_not_the_next_one_s() -> None:
    with interruptible() as first:
        signal.raise_signal(signal.SIGINT)
    with interruptible() as second:
        assert first.asked
        assert not second.asked
    assert not Interrupt.asked


def test_in_another_thread_it_does_nothing_and_harms_nothing() -> None:
    before, seen = handlers(), []

    def work() -> None:
        with interruptible() as interrupt:
            seen.append((interrupt.asked, handlers() == before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]
