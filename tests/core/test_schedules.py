import jax
import jax.numpy as jnp
import numpy as np
import pytest

from giung2_ext.core import schedules


def test_the_rate_warms_up_from_zero_then_falls_to_zero():
    rate = schedules.warmup_cosine(0.8, 48000)
    assert float(rate(jnp.int32(0))) == 0.0
    assert float(rate(jnp.int32(2400))) == pytest.approx(0.4)
    assert float(rate(jnp.int32(4800))) == pytest.approx(0.8)
    assert float(rate(jnp.int32(4800 + 21600))) == pytest.approx(0.4, abs=1e-6)
    assert float(rate(jnp.int32(48000))) == pytest.approx(0.0, abs=1e-7)


def test_a_run_too_short_to_warm_up_still_has_rates():
    rate = schedules.warmup_cosine(0.8, 5)
    values = [float(rate(jnp.int32(s))) for s in range(5)]
    assert np.isfinite(values).all()
    assert values[0] == pytest.approx(0.8)


def test_fraction_of_is_exact_where_products_overflow():
    draw = np.random.default_rng(0)
    counts = np.concatenate([draw.integers(0, 2**31, 200), [0, 1, 2**24 + 1, 2**31 - 1]])
    for fraction in (0.0, 0.1, 0.3, 1 / 3, 0.9999999):
        q = schedules.to_q31(fraction)
        found = jax.vmap(schedules.fraction_of, (0, None))(jnp.asarray(counts, jnp.int32), jnp.int32(q))
        assert found.tolist() == [int(n) * q >> 31 for n in counts]


@pytest.mark.parametrize(("count", "fraction", "expected"), [(10, 0.3, 3), (100, 0.29, 29), (7, 0.5, 3)])
def test_decimal_fractions_of_whole_numbers_come_out_whole(count, fraction, expected):
    q = schedules.to_q31(fraction)
    assert int(schedules.fraction_of(jnp.int32(count), jnp.int32(q))) == expected


def test_what_falls_falls_from_one_to_zero_but_for_the_constant():
    for name, fall in schedules.FALLS.items():
        values = [fall(i / 10) for i in range(11)]
        assert values[0] == 1
        assert values[-1] == (name == "constant")
        assert values == sorted(values, reverse=True)
    assert schedules.FALLS["cosine"](0.5) == pytest.approx(0.5)
    assert schedules.FALLS["cubic"](0.5) == 0.125


def test_an_excess_falls_from_all_to_none_and_the_exponential_one_by_equal_factors():
    for schedule in ("cubic", "linear", "exponential"):
        assert schedules.excess(schedule, 0.1, 0.0) == pytest.approx(1)
        assert schedules.excess(schedule, 0.1, 1.0) == 0
    densities = [0.1 + 0.9 * schedules.excess("exponential", 0.1, i / 8) for i in range(9)]
    assert np.allclose(np.divide(densities[1:], densities[:-1]), 0.1 ** (1 / 8))
    assert schedules.excess("exponential", 1.0, 0.5) == 0


def test_stairs_rise_and_then_fall_at_every_milestone():
    rate = schedules.warmup_stairs(1.6, 1000, 0.05, (300, 700, 900), 0.1)
    at = {step: float(rate(jnp.int32(step))) for step in (0, 25, 50, 299, 300, 699, 700, 899, 900, 999)}
    expected = [0, 0.8, 1.6, 1.6, 0.16, 0.16, 0.016, 0.016, 0.0016, 0.0016]
    assert np.allclose(list(at.values()), expected, rtol=1e-6)
    assert float(schedules.warmup_stairs(0.1, 10, 0.0, (), 0.5)(jnp.int32(0))) == np.float32(0.1)


def test_stairs_are_float64_rounded_once_wherever_they_are_computed():
    rate = jax.jit(schedules.warmup_stairs(0.3, 1000, 0.05, (300, 100, 300), 0.2))
    found = [np.float32(rate(jnp.int32(step))) for step in (50, 99, 100, 299, 300, 999)]
    assert found == [np.float32(0.3 * 0.2**passed) for passed in (0, 0, 1, 1, 3, 3)]
