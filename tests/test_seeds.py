"""Random streams: the same for ever, different from each other, and apart from the global state."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iadd_lab.seeds import derive_seed, generator
from tests.samples import assert_refused

seeds = st.integers(0, 2**63 - 1)
streams = st.lists(st.text("abc", min_size=1, max_size=3) | st.integers(0, 99), max_size=3)


def test_seeds_stay_the_same_between_releases():
    """Published numbers are reproduced from them."""
    assert derive_seed(0) == 3_456_079_177_858_693_020
    assert derive_seed(0, "teacher", 3) == 4_215_909_535_665_017_010


@given(seed=seeds, stream=streams)
def test_a_derived_seed_fits_torch_and_numpy(seed, stream):
    assert 0 <= derive_seed(seed, *stream) < 2**63


@given(one=st.tuples(seeds, streams), other=st.tuples(seeds, streams))
def test_other_streams_have_other_seeds(one, other):
    (seed, stream), (other_seed, other_stream) = one, other
    assert (derive_seed(seed, *stream) == derive_seed(other_seed, *other_stream)) == (one == other)


def test_neighbouring_streams_share_no_seed():
    found = {
        derive_seed(seed, name, *index)
        for seed, name, index in itertools.product(
            range(10), ("teacher", "order", "teacher1"), [(), *((i,) for i in range(20))]
        )
    }
    assert len(found) == 10 * 3 * 21


def test_a_stream_does_not_depend_on_what_was_drawn_before():
    first = torch.rand(4, generator=generator(1, "order"))
    torch.rand(7, generator=generator(1, "augment"))
    torch.rand(5)
    assert torch.equal(torch.rand(4, generator=generator(1, "order")), first)
    assert not torch.equal(torch.rand(4, generator=generator(2, "order")), first)


@pytest.mark.parametrize("seed", [math.nan, True, "1", None, -1, 1.0])
def test_what_is_no_seed_is_refused(seed):
    assert_refused(rf"seed is {seed!r}; it must be a whole number of at least 0", generator, seed, "order")


def test_a_generator_is_on_the_cpu_and_seeded_by_its_stream():
    found = generator(3, "order", 1)
    assert found.device.type == "cpu"
    assert found.initial_seed() == derive_seed(3, "order", 1)


def test_the_global_state_stays():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator(0, "order"))
    assert torch.equal(torch.get_rng_state(), before)
