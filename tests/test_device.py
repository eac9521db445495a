"""How a thing runs: devices by name, and precision and threads as explicit choices that go again."""

import pytest
import torch

from iadd_lab import device
from iadd_lab.device import PRECISIONS, Execution, set_precision
from iadd_lab.errors import InputError


@pytest.fixture(autouse=True)
def _precise_again():
    yield
    set_precision("float32")


def test_float32_is_exact_and_less_is_allowed_on_request():
    set_precision()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    for name in ("tf32", "bf16"):
        set_precision(name)
        assert torch.get_float32_matmul_precision() == PRECISIONS[name]
        assert torch.backends.cudnn.allow_tf32
    with pytest.raises(InputError, match="fp8"):
        set_precision("fp8")


@pytest.fixture
def drawn():
    """Tensors of several dtypes and shapes, in no order."""
    double, truth = torch.tensor([0.5], dtype=torch.float64), torch.tensor([True, False])
    return [torch.arange(6).view(2, 3), double, truth, torch.arange(2), double[:0]]


def test_many_tensors_travel_as_one_of_each_dtype_and_arrive_as_they_were(drawn):
    journeys = []

    def move(tensor):
        journeys.append((tensor.dtype, len(tensor)))
        return tensor.clone()

    assert device.to_device(drawn[0], device.pick_device("cpu")) is drawn[0]
    found = device.joined(drawn, move)
    assert sorted(journeys, key=str) == [(torch.bool, 2), (torch.float64, 1), (torch.int64, 8)]
    for tensor, expected in zip(found, drawn, strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)
        assert tensor.data_ptr() != expected.data_ptr() or not tensor.numel()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_many_tensors_go_to_a_gpu(drawn):
    for tensor, expected in zip(device.all_to_device(drawn, torch.device("cuda")), drawn, strict=True):
        assert tensor.device.type == "cuda"
        torch.testing.assert_close(tensor.cpu(), expected, rtol=0, atol=0)


def test_an_execution_is_in_force_in_its_block_and_put_back_after_it():
    def found():
        precision = torch.get_float32_matmul_precision()
        return torch.get_num_threads(), precision, torch.backends.cudnn.allow_tf32

    before, other = found(), torch.get_num_threads() + 1
    with Execution(threads=other, precision="bf16").environment():
        assert found() == (other, "medium", True)
        with Execution().environment():  # no threads asked for: those that are there
            assert found() == (other, "highest", False)
        assert found() == (other, "medium", True)
    assert found() == before
    with pytest.raises(RuntimeError, match="inside"), Execution(precision="tf32").environment():
        raise RuntimeError("inside")
    assert found() == before


def test_options_by_name_change_fields_of_an_execution():
    how = Execution(device="cpu", progress=False)
    assert Execution.of(how, {"compile": "never"}) == Execution(device="cpu", progress=False, compile="never")
    assert Execution.of(None, {}) == Execution()
    assert Execution.of(None, {"device": "cpu"}).place == torch.device("cpu")
    with pytest.raises(InputError, match=r"unknown option 'devise'.*did you mean 'device'"):
        Execution.of(how, {"devise": "cpu"})
    with pytest.raises(InputError, match="how is 'cpu'; it must be an Execution"):
        Execution.of("cpu", {})


IMPOSSIBLE = {"precision": "fp8", "compile": "alway", "threads": -1, "progress": 2}
IMPOSSIBLE |= {"checkpoint_seconds": float("nan"), "cuda_graphs": "yes"}


@pytest.mark.parametrize(("field", "value"), IMPOSSIBLE.items())
def test_an_impossible_execution_is_refused(field, value):
    with pytest.raises(InputError, match=f"{field}.*{value}"):
        Execution(**{field: value})


def test_cuda_graphs_are_used_where_they_can_be_unless_refused(monkeypatch):
    assert not Execution(device="cpu").graphs
    with pytest.raises(InputError, match=r"cuda_graphs needs a CUDA device, and this is cpu: leave it out\."):
        _ = Execution(device="cpu", cuda_graphs=True).graphs
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = [Execution(device="cuda", cuda_graphs=asked).graphs for asked in (None, True, False)]
    assert found == [True, True, False]
