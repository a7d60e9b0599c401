"""The examples run, smaller where they can be, and end well: each compares its continued run with one that was not stopped."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = {
    "quickstart": ["--max-tokens", "2000000"],
    "pytorch_loop": ["--steps", "12", "--max-tokens", "100000"],
    "fsdp2_dcp": ["--steps", "6", "--max-tokens", "100000"],
    "huggingface_trainer": ["--steps", "12", "--max-tokens", "300000"],
    "accelerate_loop": ["--steps", "12", "--max-tokens", "300000"],
    "lightning_fit": [],
}
NEEDS = {"huggingface_trainer": "transformers", "accelerate_loop": "accelerate", "lightning_fit": "lightning"}


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(name, tmp_path):
    package = NEEDS.get(name, "torch")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, see the extras of setup.cfg")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "--out", str(tmp_path / "out"), *SMALL[name]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "yes" in done.stdout.splitlines()[-1] or "equal" in done.stdout, done.stdout


def test_every_example_is_run():
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"corpus"}
    assert examples == set(SMALL)
