"""What the README shows is run."""

import re

import jax
import pytest
from fakes import REPOSITORY

from giung2_ext.core import masks as masking

PAGES = [REPOSITORY / name for name in ("README.md", "scripts/README.md", "configs/README.md")]
README = PAGES[0].read_text()


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_no_number_is_missing_and_what_is_named_exists(page):
    text = page.read_text()
    assert not re.search(r"MEASURED|NEWEST|TODO|^BENCHMARKS", text, re.MULTILINE)
    for name in re.findall(r"(?:scripts|configs)/[\w/]+\.py", text):
        assert (REPOSITORY / name).exists(), name
    if page.parent.name in ("configs", "scripts"):
        for name in re.findall(r"`(\w[\w/]*\.py)\b", text):
            found = [*REPOSITORY.glob(f"configs/**/{name}"), *REPOSITORY.glob(f"scripts/**/{name}")]
            assert found or (REPOSITORY / name).exists(), name
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        place, _, anchor = target.partition("#")
        linked = page.parent / place if place else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text()), target


def anchors(text):
    """Those that a reader of Markdown makes of its headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_number_of_a_config_is_missing():
    for path in (REPOSITORY / "configs").rglob("*.py"):
        assert "MEASURED" not in path.read_text(), path


def test_ci_finds_the_readmes_own_commands():
    assert block("main").strip().endswith("--save=save/digits --seed=0")
    assert block("test").strip().splitlines()[-1].startswith(".venv/bin/pytest")
