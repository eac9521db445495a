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


@given(one=st.tuples(seeds, streams), other=st.tuples(seeds, streams))
def test_a_derived_seed_fits_torch_and_numpy_and_no_other_stream_has_it(one, other):
    (seed, stream), (other_seed, other_stream) = one, other
    assert 0 <= derive_seed(seed, *stream) < 2**63
    assert (derive_seed(seed, *stream) == derive_seed(other_seed, *other_stream)) == (one == other)


def test_neighbouring_streams_share_no_seed():
    names, places = ("teacher", "order", "teacher1"), [(), *((i,) for i in range(20))]
    streams = itertools.product(range(10), names, places)
    assert len({derive_seed(seed, name, *place) for seed, name, place in streams}) == 10 * 3 * 21


@pytest.mark.parametrize("seed", [math.nan, True, "1", None, -1, 1.0])
def test_what_is_no_seed_is_refused(seed):
    assert_refused(rf"seed is {seed!r}; it must be a whole number of at least 0", generator, seed, "order")


def test_a_generator_is_on_the_cpu_seeded_by_its_stream_and_apart_from_the_global_state():
    before, found = torch.get_rng_state(), generator(3, "order", 1)
    assert (found.device.type, found.initial_seed()) == ("cpu", derive_seed(3, "order", 1))
    first = torch.rand(4, generator=found)
    torch.rand(7, generator=generator(3, "augment"))
    assert torch.equal(torch.rand(4, generator=generator(3, "order", 1)), first)
    assert torch.equal(torch.get_rng_state(), before)
