"""Stop signals: noted, told by their number, and never in the way of a checkpoint."""

import os
import signal
import threading

import pytest

from chess_cxr.training.stop import Stopped, catch_stop_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_is_noted_and_its_usual_effect_comes_back_afterwards(number: signal.Signals) -> None:
    usual: list[int] = []
    before = signal.signal(number, lambda received, frame: usual.append(received))
    try:
        with catch_stop_signals() as get_stop_signal:
            assert get_stop_signal() == 0
            os.kill(os.getpid(), number)
            assert get_stop_signal() == number and usual == []
        os.kill(os.getpid(), number)
        assert usual == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(("number", "acts"), [(signal.SIGTERM, False), (signal.SIGINT, True), (signal.SIGUSR1, False)])
def test_only_a_second_ctrl_c_acts_as_usual_a_repeated_order_does_not(number: signal.Signals, acts: bool) -> None:
    usual: list[int] = []
    before = signal.signal(number, lambda received, frame: usual.append(received))
    try:
        with catch_stop_signals() as get_stop_signal:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert get_stop_signal() == number and usual == [number] * acts
    finally:
        signal.signal(number, before)


def test_the_first_of_several_signals_is_the_one_that_is_told() -> None:
    with catch_stop_signals() as get_stop_signal:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert get_stop_signal() == signal.SIGUSR1


def test_the_exit_code_is_what_a_shell_says_of_a_process_that_the_signal_ended() -> None:
    codes = {number: Stopped(number, "stopped").exit_code for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    assert codes == {signal.SIGTERM: 143, signal.SIGUSR1: 138, signal.SIGINT: 130}


def test_outside_the_main_thread_no_signal_is_touched() -> None:
    heard: list[int] = []

    def listen() -> None:
        with catch_stop_signals() as get_stop_signal:
            heard.append(get_stop_signal())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [0] and signal.getsignal(signal.SIGTERM) is before
