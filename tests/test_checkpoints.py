"""When a checkpoint is written, what Ctrl-C does while one is open, and how a computation is completed."""

import io
import itertools
import os
import signal
import sys
import threading

import pytest
import torch

from iadd_lab.device import Execution
from iadd_lab.errors import DivergenceError
from iadd_lab.store import resumable as checkpoints
from iadd_lab.store.resumable import complete
from tests.samples import assert_refused

RARELY = 1e6  # seconds between two saves


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


class Counting:
    """Counts to four; at two, one after the other of `events` happens: a signal, or an error that ends it."""

    unit, total = "count", 4

    def __init__(self, *events):
        self.done, self.events = 0, list(events)

    def advance(self):
        while self.events and self.done == 2:
            event = self.events.pop(0)
            if isinstance(event, Exception):
                raise event
            os.kill(os.getpid(), event)
        self.done += 1
        return {"loss": f"{self.done}"}

    def state(self):
        return {"done": torch.tensor(self.done)}, {}

    def load(self, artefact):
        self.done = int(artefact.tensors["done"])


class Forgiving(Counting):
    """Backs off once."""

    offs = 0

    def back_off(self, reason):
        self.offs += 1
        return self.offs == 1

    def result(self):
        return self.done


def bring_to_its_end(run, path, **change):
    """What was seen after each unit."""
    seen, how = [], Execution(progress=False, checkpoint_seconds=change.pop("seconds", 0.0))
    options = {"path": path, "identity": "mine", "title": "count", "how": how} | change
    complete(run, on_advance=lambda: seen.append(run.done), **options)
    return seen


@pytest.mark.parametrize(("before", "after"), [("COMPATIBLE", "AVX2"), ("AVX2", "AVX2")])
def test_a_run_that_goes_on_with_other_instructions_says_so_once(path, monkeypatch, capsys, before, after):
    monkeypatch.setenv("MKL_CBWR", before)
    with pytest.raises(DivergenceError):
        bring_to_its_end(Counting(DivergenceError("too wild")), path)
    monkeypatch.setenv("MKL_CBWR", after)
    assert bring_to_its_end(Counting(), path) == [3, 4]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (before != after)
    assert all(f"MKL_CBWR={before}, and goes on with " in line and f"={after}: last" in line for line in said)


def test_saving_waits_for_its_time_and_spares_the_run(path, monkeypatch):
    now, saves = [0.0], []
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])

    class Slow(Counting):
        total = 700

        def advance(self):
            now[0] += 1.0
            super().advance()

        def state(self):
            saves.append(now[0])
            now[0] += 3.0  # what a save takes
            return super().state()

    bring_to_its_end(Slow(), path, seconds=10.0)
    assert saves[0] == 10.0
    assert all(later - earlier >= 60 * 3 for earlier, later in itertools.pairwise(saves))
    assert 3 * len(saves) / now[0] < 0.02
    assert_refused("checkpoint_seconds is -1", Execution, checkpoint_seconds=-1)


# What asks it to stop --------------------------------------------------------------------------------------


ENDING = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


@pytest.fixture
def as_command():
    """What a command does with signals, put back afterwards."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in ENDING}
    checkpoints.heed()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("as_command")
@pytest.mark.parametrize(
    ("numbers", "kind"),
    [
        ([signal.SIGINT], KeyboardInterrupt),
        *(([number], SystemExit) for number in ENDING),
        ([signal.SIGHUP, signal.SIGHUP, signal.SIGTERM], SystemExit),  # as a closed session sends them
        ([signal.SIGXCPU] * 3, SystemExit),  # every second
    ],
)
def test_it_stops_where_its_state_is_whole_and_goes_on_from_there(path, capsys, numbers, kind):
    run, (number, *_) = Counting(*numbers), numbers
    before = signal.getsignal(number)
    with pytest.raises(kind) as stopped:
        bring_to_its_end(run, path, seconds=RARELY)
    assert getattr(stopped.value, "code", None) == (None if number == signal.SIGINT else 128 + number)
    said = capsys.readouterr().err
    assert said.count("stopping after this count; Ctrl-C again stops at once") == 1
    assert f"after count 3 is kept in {path}; run the same again to go on" in said + str(stopped.value)
    assert run.done == 3
    assert signal.getsignal(number) is before
    assert bring_to_its_end(Counting(), path) == [4]


def test_a_second_ctrl_c_stops_at_once_and_so_does_the_first_where_nothing_is_kept(path):
    for numbers, place, told in (
        ([signal.SIGINT] * 2, path, "^stopped at once"),
        ([signal.SIGINT], None, "^$"),
    ):
        run = Counting(*numbers)
        with pytest.raises(KeyboardInterrupt, match=told):
            bring_to_its_end(run, place, seconds=RARELY)
        assert run.done == 2
        assert not path.exists()


@pytest.mark.usefixtures("as_command")
def test_a_command_ends_in_order_and_ignores_what_was_ignored(path, capsys):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    checkpoints.heed()
    assert bring_to_its_end(Counting(signal.SIGHUP), path) == [1, 2, 3, 4]
    with pytest.raises(SystemExit) as stopped:  # where nothing is to be kept
        os.kill(os.getpid(), signal.SIGUSR1)
    assert stopped.value.code == 128 + signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGUSR1)  # it is on its way
    assert capsys.readouterr().err == "stopped: SIGUSR1 asked for it; run the same again to go on.\n"


def test_a_call_of_the_library_heeds_ctrl_c_and_sigterm_alone(path):
    def handlers() -> dict:
        return {number: signal.getsignal(number) for number in signal.valid_signals()}

    before, found = handlers(), {}
    bring_to_its_end(Counting(), path, save=lambda: found.update(handlers()))
    assert {n for n in before if found[n] is not before[n]} == {signal.SIGINT, signal.SIGTERM}


def test_where_nobody_reads_any_more_it_goes_on_and_keeps_what_was_done(path, monkeypatch):
    """The connection dropped: whatever is written raises."""

    class Gone(io.StringIO):
        def write(self, text):
            if "0/4" not in text:  # from the first count on
                raise BrokenPipeError
            return len(text)

    monkeypatch.setattr(sys, "stderr", Gone())
    how = {"how": Execution(checkpoint_seconds=RARELY), "seconds": RARELY}
    with pytest.raises(SystemExit):
        bring_to_its_end(Counting(signal.SIGTERM), path, **how)
    assert bring_to_its_end(Counting(), path) == [4]


def test_ctrl_c_in_the_last_moment_still_stops_what_comes_next(path):
    with pytest.raises(KeyboardInterrupt, match="had just ended"):
        bring_to_its_end(Counting(), path, save=lambda: os.kill(os.getpid(), signal.SIGINT))


def test_an_error_is_not_hidden_by_ctrl_c(path):
    with pytest.raises(ZeroDivisionError):
        bring_to_its_end(Counting(signal.SIGINT, ZeroDivisionError()), path, seconds=RARELY)


def test_other_threads_save_without_handling_signals(path):
    thread = threading.Thread(target=bring_to_its_end, args=[Counting(), path])
    thread.start()
    thread.join()
    assert bring_to_its_end(Counting(), path) == []


# How it is completed ---------------------------------------------------------------------------------------


def test_a_computation_is_brought_to_its_end_and_its_checkpoint_goes_after_the_result(path):
    found = []
    assert bring_to_its_end(Counting(), path, save=lambda: found.append(path.exists())) == [1, 2, 3, 4]
    assert found == [True]
    assert not path.exists()
    assert bring_to_its_end(Counting(), path) == [1, 2, 3, 4]
    assert path.exists()  # the caller has to store the result first
    assert bring_to_its_end(Counting(), None) == [1, 2, 3, 4]


def test_an_interrupted_computation_goes_on_and_only_a_writer_writes(path):
    with pytest.raises(ZeroDivisionError):
        bring_to_its_end(Counting(ZeroDivisionError()), path)
    before = path.read_bytes()
    assert bring_to_its_end(Counting(), path, writes=False, save=path.unlink) == [3, 4]
    assert path.read_bytes() == before
    assert_refused("another configuration", bring_to_its_end, Counting(), path, identity="other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Counting, "state", lambda run: ({}, {}))
        bring_to_its_end(Counting(), path, identity="mine")
    told = r"checkpoint.safetensors can't be used \(it has no 'done'\)"
    assert_refused(told, bring_to_its_end, Counting(), path)


def test_one_back_off_goes_on_and_another_ends_with_the_last_good_state(path):
    assert bring_to_its_end(Forgiving(DivergenceError("up.")), path) == [1, 2, 2, 3, 4]
    path.unlink()
    twice = Forgiving(DivergenceError("up."), DivergenceError("off."))
    kept = r"off\. The state after 2 counts is kept in .*ors\."
    with pytest.raises(DivergenceError, match=kept) as stopped:
        bring_to_its_end(twice, path, seconds=RARELY)
    assert stopped.value.result == 2
    assert bring_to_its_end(Counting(), path) == [3, 4]
    path.unlink()
    with pytest.raises(DivergenceError, match=r"^up\.$"):  # where nothing can go back, no state is good
        bring_to_its_end(Counting(DivergenceError("up.")), path, seconds=RARELY)
    assert not path.exists()


def test_the_loss_of_another_process_leaves_the_state_before(path):
    sentence = r"gone\. The state after 2 counts is kept in .*ors\. Run the same again to go on\."
    with pytest.raises(ConnectionResetError, match=sentence):
        bring_to_its_end(Counting(ConnectionResetError("gone.")), path, seconds=RARELY)
    assert bring_to_its_end(Counting(), path) == [3, 4]
