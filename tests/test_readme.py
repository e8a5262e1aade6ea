"""What the README shows is run."""

import re

import jax
from fakes import REPOSITORY

from giung2_ext.core import masks as masking

README = (REPOSITORY / "README.md").read_text()


def block(name):
    found = re.search(rf"<!-- {name} -->\n```\w*\n(.*?)```", README, re.DOTALL)
    return found.group(1)


def test_a_method_runs_in_the_plain_loop_of_the_readme():
    scope = {}
    with jax.numpy_rank_promotion("allow"):
        exec(compile(block("loop"), "README.md", "exec"), scope)
        logits = scope["model"].apply(
            {"params": scope["method"].weights(scope["trainable"], scope["state"])}, scope["images"]
        )
    assert float((logits.argmax(1) == scope["labels"]).mean()) > 0.9
    masks = scope["method"].masks(scope["trainable"], scope["state"])
    assert int(masking.kept(masks)) == 50200 * 5 // 100
    assert masking.overlap(masks, scope["start"]) < 0.9


def test_no_number_is_missing():
    assert not re.search(r"MEASURED|NEWEST|TODO|^BENCHMARKS", README, re.MULTILINE)
    for path in (REPOSITORY / "configs").rglob("*.py"):
        assert "MEASURED" not in path.read_text(), path


def test_the_commands_name_scripts_and_configs_that_exist():
    for name in re.findall(r"(?:scripts|configs)/[\w/]+\.py", README):
        assert (REPOSITORY / name).exists(), name


def test_ci_finds_the_readmes_own_commands():
    assert block("main").strip().endswith("--save=save/digits --seed=0")
    assert block("test").strip().splitlines()[-1].startswith(".venv/bin/pytest")
