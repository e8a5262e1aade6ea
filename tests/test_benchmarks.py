"""The benchmarks run, check their contenders against each other, and say what they measured."""

import importlib.util
import json
import subprocess
import sys

import pytest
from fakes import REPOSITORY

NAMES = sorted(
    path.stem for path in (REPOSITORY / "scripts/benchmarks").glob("*.py") if path.stem[0] != "_"
)


def benchmark(*words):
    command = [sys.executable, str(REPOSITORY / "scripts/benchmark.py"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_ends_with_one_object_of_ratios(name):
    if name == "torch_step" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is an extra, absent here; 2026-11-21")
    done = benchmark(name, "--smoke", "--json", "--repeats=1")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"name", "parts", "machine", "python", "packages", "commit"} <= set(result)
    assert result["name"] == name
    assert result["parts"]
    for part in result["parts"]:
        ours, *rivals = part["seconds"]
        assert rivals
        assert set(part["ratios"]) == set(rivals)
        for rival in rivals:
            expected = part["seconds"][rival] / part["seconds"][ours]
            assert part["ratios"][rival] == pytest.approx(expected)
            assert rival in done.stdout
        assert part["aims"] == {}  # they are for the full size


def test_bad_words_are_one_clear_line():
    assert benchmark("selekt").stderr.startswith(
        "error: unknown benchmark 'selekt'; known: dynamic, evaluate, input, mask_overhead"
    )
    assert "unknown flag --jason" in benchmark("select", "--jason").stderr
    assert "usage: python scripts/benchmark.py NAME" in benchmark().stderr
