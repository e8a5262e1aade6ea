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


def test_rigls_drop_fraction_is_a_cosine_to_zero():
    assert schedules.cosine_fraction(0.3, 0, 100) == 0.3
    assert schedules.cosine_fraction(0.3, 50, 100) == pytest.approx(0.15)
    assert schedules.cosine_fraction(0.3, 100, 100) == 0.0
