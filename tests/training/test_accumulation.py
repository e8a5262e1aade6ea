import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core.errors import Refusal
from giung2_ext.training import accumulation
from giung2_ext.training.step import cut


@pytest.mark.parametrize(
    ("batch", "devices", "group", "counts"),
    [
        (2048, 1, 256, [1, 2, 4, 8]),
        (2048, 8, 256, [1, 2, 4, 8]),
        (2048, 64, 256, [1, 2, 4, 8]),
        (60, 1, None, [1, 2, 3, 4, 5, 6, 10, 12, 15, 20, 30, 60]),
        (64, 8, None, [1, 2, 4, 8]),
        (64, 4, 0, [1]),  # BatchNorm over the whole batch cannot be cut
    ],
)
def test_a_batch_is_cut_into_whole_groups_and_equal_shares(batch, devices, group, counts):
    assert accumulation.possible(batch, devices, group) == counts


@pytest.mark.parametrize(
    ("devices", "micro", "group"), [*itertools.product((1, 2, 4, 8), (1, 2, 4), (8, 16))]
)
def test_a_cut_keeps_every_group_whole_and_takes_every_example_once(devices, micro, group):
    shares = accumulation.shares(64, devices, group, micro)
    rows = np.asarray(cut({"x": jnp.arange(64)}, micro, shares)["x"])
    assert rows.shape == (micro, 64 // micro)
    assert sorted(rows.ravel()) == list(range(64))
    for part in rows.reshape(-1, group):
        assert part.tolist() == list(range(part[0], part[0] + group))
        assert part[0] % group == 0
    if shares == devices:  # the d-th share of a micro-batch comes from the d-th device
        of_device = np.arange(64) // (64 // devices)
        expected = np.repeat(np.arange(devices), 64 // micro // devices)
        assert all((of_device[part] == expected).all() for part in rows)


def test_shares_are_taken_from_all_devices_where_groups_stay_local():
    assert accumulation.shares(2048, 8, 256, 1) == 8
    assert accumulation.shares(2048, 4, 256, 2) == 4
    assert accumulation.shares(2048, 8, 256, 2) == 1  # half a group on every device
    assert accumulation.shares(2048, 8, None, 2) == 8  # no groups to keep


def count(need, counts, limit):
    tried = []

    def asked(n):
        tried.append(n)
        return need(n)

    return accumulation.fewest(asked, counts, limit), tried


def test_the_fewest_that_fit_are_found_and_hopeless_ones_not_compiled():
    assert count(lambda n: 100 / n, [1, 2, 4, 8], 100) == (1, [1])
    assert count(lambda n: 100 / n, [1, 2, 4, 8], 20) == (8, [1, 8])
    assert count(lambda n: 20 + 100 / n, [1, 2, 4, 8, 16], 40) == (8, [1, 4, 8])
    unknown = lambda n: math.inf if n < 4 else 100 / n  # noqa: E731, could not even be compiled
    assert count(unknown, [1, 2, 4, 8], 30) == (4, [1, 2, 4])


def test_what_never_fits_is_refused_with_what_it_needs():
    with pytest.raises(Refusal, match=r"does not fit in 1\.00 GiB a device, even in 4 micro-batches"):
        accumulation.fewest(lambda n: 2**32 + 2**32 / n, [1, 2, 4], 2.0**30)


def test_what_a_compiled_program_needs_is_at_least_what_it_is_given_and_gives():
    lowered = jax.jit(lambda x: x @ x).lower(jnp.ones((256, 256)))
    assert accumulation.needed([lowered]) >= 2 * 4 * 256 * 256


def test_what_is_too_large_to_compile_needs_more_than_there_is():
    class Large:
        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 207.00G exceeds available HBM")

    assert accumulation.needed([Large()]) == math.inf
    assert 2**28 < accumulation.device_memory() < 2**44
