"""When a checkpoint is written, what Ctrl-C does while one is open, and how a computation is completed."""

import itertools
import os
import signal
import threading

import pytest
import torch

from iadd_lab.device import Execution
from iadd_lab.errors import DivergenceError, InputError
from iadd_lab.store import resumable as checkpoints
from iadd_lab.store.resumable import Checkpoint, complete


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.safetensors"


def make(path, **change):
    return Checkpoint(path, **{"run": "mine", "unit": "epoch", "seconds": 0.0} | change)


def state(value=1.0):
    return lambda: ({"value": torch.tensor(value)}, {"count": int(value)})


def test_what_was_saved_last_is_loaded(path):
    with make(path) as checkpoint:
        assert checkpoint.load() is None
        checkpoint.keep(1, state(1.0))
        checkpoint.keep(2, state(2.0))
        found = checkpoint.load()
        assert found.tensors["value"] == 2.0
        assert found.metadata["count"] == 2
        checkpoint.remove()
        assert checkpoint.load() is None


def test_saving_waits_for_its_time_and_spares_the_run(path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    saves = []

    def slow():
        saves.append(now[0])
        now[0] += 3.0  # what a save takes
        return state()()

    with make(path, seconds=10.0) as checkpoint:
        for count in range(1, 701):
            now[0] += 1.0
            checkpoint.keep(count, slow)
    assert saves[0] == 10.0
    assert all(later - earlier >= 60 * 3 for earlier, later in itertools.pairwise(saves))
    assert 3 * len(saves) / now[0] < 0.02


def test_without_a_path_nothing_is_saved_and_nothing_is_handled():
    before = signal.getsignal(signal.SIGINT)
    with make(None) as checkpoint:
        assert signal.getsignal(signal.SIGINT) is before
        checkpoint.keep(1, state())
        assert checkpoint.load() is None
        checkpoint.remove()


def work(path, *, signals, epochs=5, each=lambda count: None, **change):
    """Count to `epochs` under a checkpoint, with these signals sent in the third epoch."""
    with make(path, **{"seconds": 1e6} | change) as checkpoint:
        for count in range(1, epochs + 1):
            for number in signals if count == 3 else ():
                os.kill(os.getpid(), number)
            each(count)
            checkpoint.keep(count, state(float(count)))


def test_ctrl_c_is_heeded_where_the_state_is_whole(path, capsys):
    done = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [*map(signal.getsignal, signals)]
    with pytest.raises(KeyboardInterrupt, match=r"after epoch 3 is kept in .*; run the same again to go on"):
        work(path, signals=[signal.SIGINT], each=done.append)
    assert done == [1, 2, 3]
    assert make(path).load().metadata["count"] == 3
    assert "stopping after this epoch; Ctrl-C again stops at once" in capsys.readouterr().err
    assert [*map(signal.getsignal, signals)] == before


def test_a_second_ctrl_c_stops_at_once(path, tmp_path):
    done = []
    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        work(path, signals=[signal.SIGINT, signal.SIGINT], each=done.append)
    assert done == [1, 2]
    assert not list(tmp_path.iterdir())


def test_sigterm_saves_and_exits_with_its_code(path, capsys):
    with pytest.raises(SystemExit) as stopped:
        work(path, signals=[signal.SIGTERM])
    assert stopped.value.code == 143
    assert "after epoch 3 is kept" in capsys.readouterr().err
    assert make(path).load().metadata["count"] == 3


def test_ctrl_c_in_the_last_moment_still_stops_what_comes_next(path):
    with pytest.raises(KeyboardInterrupt, match="had just ended"), make(path):
        os.kill(os.getpid(), signal.SIGINT)


def test_an_error_in_the_block_is_not_hidden_by_ctrl_c(path):
    with pytest.raises(ZeroDivisionError):
        work(path, signals=[signal.SIGINT], each=lambda count: 1 / (3 - count))


def test_other_threads_save_without_handling_signals(path):
    thread = threading.Thread(target=work, args=[path], kwargs={"signals": [], "seconds": 0.0})
    thread.start()
    thread.join()
    assert make(path).load().metadata["count"] == 5


def test_bad_seconds_are_refused():
    with pytest.raises(InputError, match="checkpoint_seconds is -1"):
        Execution(checkpoint_seconds=-1)


class Counting:
    """Counts to four; `events` say what happens instead of the next count."""

    unit, total = "count", 4

    def __init__(self, *events):
        self.done, self.events = 0, list(events)

    def advance(self):
        if self.events and self.done == 2:
            raise self.events.pop(0)
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
    with pytest.raises(InputError, match="another configuration"):
        bring_to_its_end(Counting(), path, identity="other")
    make(path).save(lambda: ({}, {}))
    with pytest.raises(InputError, match=r"checkpoint.safetensors can't be used \(it has no 'done'\)"):
        bring_to_its_end(Counting(), path)


def test_one_back_off_goes_on_and_another_ends_with_the_last_good_state(path):
    assert bring_to_its_end(Forgiving(DivergenceError("up.")), path) == [1, 2, 2, 3, 4]
    path.unlink()
    twice = Forgiving(DivergenceError("up."), DivergenceError("off."))
    kept = r"off\. The state after 2 counts is kept in .*ors\."
    with pytest.raises(DivergenceError, match=kept) as stopped:
        bring_to_its_end(twice, path, seconds=1e6)
    assert stopped.value.result == 2
    assert make(path).load().tensors["done"] == 2
    path.unlink()
    with pytest.raises(DivergenceError, match=r"^up\.$"):  # where nothing can go back, no state is good
        bring_to_its_end(Counting(DivergenceError("up.")), path, seconds=1e6)
    assert not path.exists()


def test_the_loss_of_another_process_leaves_the_state_before(path):
    sentence = r"gone\. The state after 2 counts is kept in .*ors\. Run the same again to go on\."
    with pytest.raises(ConnectionResetError, match=sentence):
        bring_to_its_end(Counting(ConnectionResetError("gone.")), path, seconds=1e6)
    assert bring_to_its_end(Counting(), path) == [3, 4]
