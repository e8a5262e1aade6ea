"""What members score on splits of the data, whole."""

from collections.abc import Mapping
from typing import Any

from giung2_ext.training.population import Population
from giung2_ext.training.program import Program

Tree = Any
Scores = dict[str, dict[str, float]]  # {split: {accuracy, loss, correct, seen}}


def measure(
    program: Program, population: Population, network: tuple[Tree, Tree], splits: Mapping[str, Tree]
) -> list[Scores]:
    """Every member's scores on every split; `correct` is the exact number of hits."""
    sums = {name: program.evaluate(network, batches) for name, batches in splits.items()}
    return [{name: _means(member) for name, member in scores.items()} for scores in population.gather(sums)]


def _means(sums: Mapping[str, Any]) -> dict[str, float]:
    seen = int(sums["seen"])
    return {
        "accuracy": int(sums["correct"]) / seen,
        "loss": float(sums["loss"]) / seen,
        "correct": int(sums["correct"]),
        "seen": seen,
    }
