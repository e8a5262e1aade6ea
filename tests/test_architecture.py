"""The import rule and the purity rule of the design, walked over every file."""

import ast
import re
import subprocess
import sys

import pytest
from fakes import REPOSITORY

FILES = sorted((REPOSITORY / "giung2_ext").rglob("*.py"))
COLUMNS = [{"core"}, {"models", "methods", "data", "storage"}, {"training"}, {"experiments"}, {"scripts"}]
MAY_ALSO = {"reports": {"core", "storage"}, "scripts": {"reports"}}
PURE = ("core", "models", "methods")
IMPURE_IMPORTS = {"os", "sys", "io", "pathlib", "logging", "time", "datetime", "random", "ml_collections",
                  "orbax", "tensorflow", "clu", "grain", "etils", "tqdm"}  # fmt: skip
KEY_MAKERS = {"key", "PRNGKey"}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def column_of(package):
    return next((i for i, column in enumerate(COLUMNS) if package in column), None)


def allowed(package, other):
    if other == package or other in MAY_ALSO.get(package, set()):
        return True
    mine, theirs = column_of(package), column_of(other)
    return mine is not None and theirs is not None and theirs < mine


@pytest.mark.parametrize(
    "path", [*FILES, *sorted((REPOSITORY / "scripts").glob("*.py"))], ids=lambda p: p.stem
)
def test_imports_point_left(path):
    package = path.relative_to(REPOSITORY).parts[0]
    package = path.relative_to(REPOSITORY).parts[1] if package == "giung2_ext" else package
    for name in imports(path):
        if name.startswith("giung2_ext.") and not package.endswith(".py"):
            other = name.split(".")[1]
            assert allowed(package, other), f"{path.relative_to(REPOSITORY)} imports {name}"


def test_the_rule_refuses_what_points_right():
    assert not allowed("core", "models")
    assert not allowed("models", "data")
    assert not allowed("training", "experiments")
    assert not allowed("reports", "training")


PURE_FILES = [p for p in FILES if p.relative_to(REPOSITORY / "giung2_ext").parts[0] in PURE]
PURE_FILES.append(REPOSITORY / "giung2_ext/training/step.py")


@pytest.mark.parametrize("path", PURE_FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_pure_modules_touch_nothing_outside(path):
    for name in imports(path):
        assert name.split(".")[0] not in IMPURE_IMPORTS, f"{path.name} imports {name}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("print", "open", "input"), f"{path.name}:{node.lineno} calls {called}"
            maker = called.rsplit(".", 1)[-1]
            assert not (maker in KEY_MAKERS and "random" in called), (
                f"{path.name}:{node.lineno} makes a key"
            )


def test_depth_is_at_most_three():
    assert all(len(path.relative_to(REPOSITORY / "giung2_ext").parts) <= 3 for path in FILES)


BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.argv = ["train.py", *{arguments!r}]
import runpy
runpy.run_path({script!r}, run_name="__main__")
"""


def test_training_on_arrays_needs_no_more_than_jax_flax_optax_orbax_and_ml_collections(
    image_arrays, tmp_path
):
    absent = ("clu", "tensorflow_datasets", "grain", "matplotlib", "tqdm", "sklearn", "torch")
    absent += ("cv2", "simplejpeg", "PIL", "array_record")
    arguments = [
        f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke",
        "--config.data.name=arrays",
        "--config.data.num_classes=3",
        "--config.data.holdout=20",
        f"--data_root={image_arrays}",
        "--optim_ni=4",
        f"--save={tmp_path / 'run'}",
    ]
    code = BARE.format(absent=absent, arguments=arguments, script=str(REPOSITORY / "scripts/train.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (tmp_path / "run/last.ckpt/arrays.npz").exists()


def test_a_chain_needs_no_package_of_its_page(tmp_path):
    arguments = [
        f"--config={REPOSITORY / 'configs/imp/digits.py'}:smoke",
        *("--optim_ni=2", "--config.chain.trials=1", "--config.chain.arms=", "--config.chain.cycles=1"),
        f"--save={tmp_path / 'run'}",
    ]
    absent = ("altair", "vl_convert", "jinja2", "PIL", "simplejpeg", "cv2")
    code = BARE.format(absent=absent, arguments=arguments, script=str(REPOSITORY / "scripts/imp.py"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "no page and no figures: the page needs " in done.stdout
    assert (tmp_path / "run/report/report.md").exists()


@pytest.mark.parametrize("name", ["torch", "libtpu", "wandb", "tensorboardX", "playwright", "tensorflow"])
def test_tests_that_need_what_the_test_command_does_not_install_skip_themselves(name):
    for file in (REPOSITORY / "tests").rglob("test_*.py"):
        text = file.read_text()
        used = re.search(rf"^ *(import|from) {name}\b", text, re.MULTILINE)
        assert not used or f'importorskip("{name}"' in text[: used.start()], file
