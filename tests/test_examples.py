"""The examples run, smaller where they can be, and end well: each compares its continued run with one that was not stopped,
or says on its own what must be in its figures."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
SMALL = {
    "quickstart": ["--max-tokens", "2000000"],
    "pytorch_loop": ["--steps", "12", "--max-tokens", "100000"],
    "fsdp2_dcp": ["--steps", "6", "--max-tokens", "100000"],
    "huggingface_trainer": ["--steps", "12", "--max-tokens", "300000"],
    "accelerate_loop": ["--steps", "12", "--max-tokens", "300000"],
    "lightning_fit": [],
    "train_gpt": ["--quick", "--tokens", "6000", "--max-tokens", "2000000", "--processes", "1"],
    "orders": ["--quick", "--max-tokens", "2000000", "--processes", "1", "--num-lanes", "16"],
    "tune_warmup": ["--steps", "10", "--longest", "100", "--max-tokens", "300000"],
    "stability": ["--quick", "--steps", "6", "--max-tokens", "300000"],
}
OUT = {"orders": "--json"}  # the option that takes the place to write to, where it is not --out
NEEDS = {
    "huggingface_trainer": "transformers",
    "accelerate_loop": "accelerate",
    "lightning_fit": "lightning",
    "train_gpt": "matplotlib",
    "orders": "matplotlib",
    "tune_warmup": "tqdm",
    "stability": "matplotlib",
}


def every_way_trained_on_as_many_tokens_and_the_result_is_said_first(folder, printed):
    """Of train_gpt: but for less than a step of four rows, and only the tokens that ``truncate`` cuts were read in vain."""
    figures = json.loads((folder / "figures.json").read_text())
    runs, table = figures["runs"], figures["table"]
    assert printed.splitlines()[0] == f"{said(table, 'constant rows', 'the baseline')}, and {said(table, 'constant tokens')}."
    ends = {run["job"]["arm"]: run["curve"][-1] for run in runs}
    assert all(6000 - 4 * 512 < trained <= 6000 for _, trained, _, _ in ends.values())
    wasteful = [arm for arm, (read, trained, _, _) in ends.items() if read > trained]
    return len(ends) == 5 and wasteful == ["truncate"] and (folder / "losses.png").stat().st_size > 10_000


def said(table, arm, baseline=None):
    """What the sentence says of ``arm``, which begins it if ``baseline`` is named."""
    [time], [data] = table[arm]["time"], table[arm]["data"]
    name, loss = (arm.capitalize(), f"{baseline}'s final loss") if baseline else (arm, "it")
    if time is None:
        return f"{name} did not reach {loss}"
    return f"{name} reached {loss} in {time:.2f} of its time and {data:.2f} of its data" + ", no gain in time" * (time >= 1)


def each_order_has_its_losses_and_documents(file, printed):
    """Of orders: a row of the table for each, and documents as they can be counted by hand."""
    sentence, *table = printed.splitlines()
    figures = json.loads(file.read_text())
    names = ["stream order", "shuffle=True", "num_lanes=16", "random rows"]
    assert [list(losses) for losses in figures["losses"].values()] == [names, names] and len(figures["losses"]) == 2
    assert sentence.startswith("The mean loss of shuffle=True is ") and sentence.count(" with ") == 2
    for name in names:
        [row] = [line.removeprefix(name).split() for line in table if line.startswith(name)]
        assert row[:2] == [f"{losses[name][0]:.3f}" for losses in figures["losses"].values()]
    one, hundred, left = figures["documents"]["stream order"]
    assert 1 <= one < 1.02 and 1 <= hundred <= 2 and left < 16 * 1024  # 128 neighbours, and 12,800 of them; less than a step
    one, hundred, left = figures["documents"]["random rows"]
    return abs(one - 15.93) < 0.1 and abs(hundred - 1060) < 30 and left is None  # 1800 (1 - (1 - 1 / 1800) ** rows)


def the_schedule_found_is_the_longest_that_was_probed_and_calm(folder, printed):
    """Of tune_warmup: no perplexity is above 1.3 times one before it."""
    tuning = json.loads((folder / "tuning.json").read_text())
    calm = []
    for probe in tuning["probes"]:
        seen = np.exp(probe["losses"])
        if not any(seen[later] > 1.3 * seen[i] for i in range(len(seen)) for later in range(i, len(seen))):
            calm.append(probe["schedule"])
    return tuning["schedule"] == max(calm, key=lambda schedule: schedule["warmup_steps"])


def each_rate_was_tried_both_ways_and_judged_by_its_figures(folder, printed):
    """Of stability: of the largest loss ratio, and of the last loss beside that of the baseline at the lowest rate."""
    runs = json.loads((folder / "stability.json").read_text())["runs"]
    [lowest] = [run for run in runs if (run["arm"], run["rate"]) == ("full length", 0.004)]
    for run in runs:
        assert run["survives"] == (run["loss_ratio"] <= 1.2 and run["held_out_loss"] <= 1.05 * lowest["held_out_loss"])
    tried = {(run["arm"], run["rate"]) for run in runs}
    return len(tried) == len(runs) == 6 and (folder / "stability.png").stat().st_size > 10_000


ENDS_WELL = {
    "train_gpt": every_way_trained_on_as_many_tokens_and_the_result_is_said_first,
    "orders": each_order_has_its_losses_and_documents,
    "tune_warmup": the_schedule_found_is_the_longest_that_was_probed_and_calm,
    "stability": each_rate_was_tried_both_ways_and_judged_by_its_figures,
}


@pytest.mark.parametrize("name", SMALL)
def test_an_example_runs(name, tmp_path):
    package = NEEDS.get(name, "torch")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}, see the extras of setup.cfg")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        str(ROOT / "examples" / f"{name}.py"),
        OUT.get(name, "--out"),
        str(tmp_path / "out"),
        *SMALL[name],
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    if name in ENDS_WELL:
        assert ENDS_WELL[name](tmp_path / "out", done.stdout), done.stdout
    else:
        assert "yes" in done.stdout.splitlines()[-1] or "equal" in done.stdout, done.stdout


def test_every_example_is_run():
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"corpus", "gpt"}
    assert examples == set(SMALL)
