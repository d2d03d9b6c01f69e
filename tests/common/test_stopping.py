import pickle
import signal
import threading

import pytest

from sparsedet.common.stopping import Stopped, StopRequests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_handlers_of_before_come_back(number):
    before = signal.getsignal(number)
    with StopRequests() as stop:
        assert stop.number is None
        signal.raise_signal(number)
        assert stop.number == number
    assert signal.getsignal(number) is before


def test_a_second_control_c_interrupts_and_a_second_sigterm_does_not():
    with StopRequests() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert stop.number == signal.SIGTERM
    said = []
    with StopRequests(said.append) as stop:
        signal.raise_signal(signal.SIGINT)
        assert said == ["stopping after this step; Ctrl-C again ends at once"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_in_another_thread_no_handler_is_set():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopRequests() as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.number))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_stopped_has_the_exit_code_of_shells_in_every_process():
    stopped = pickle.loads(pickle.dumps(Stopped("here", signal.SIGTERM)))
    assert (str(stopped), stopped.exit_code) == ("here", 143)
