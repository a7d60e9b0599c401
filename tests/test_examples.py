"""The examples run, smaller where they can be, and end well: each compares its continued run with one that was not stopped,
or says on its own what must be in its figures."""

import importlib.util
import json
import os
import re
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
    reached = r"(did not reach {0}|reached {0} in \d+\.\d\d of its time and \d+\.\d\d of its data(, no gain in time)?)"
    ways = ("Constant rows", "the baseline's final loss"), ("constant tokens", "it")
    said = ", and ".join(f"{name} {reached.replace('{0}', loss)}" for name, loss in ways)
    assert re.fullmatch(rf"{said}\.", printed.splitlines()[0])
    runs = json.loads((folder / "figures.json").read_text())["runs"]
    ends = {run["job"]["arm"]: run["curve"][-1] for run in runs}
    assert all(6000 - 4 * 512 < trained <= 6000 for _, trained, _, _ in ends.values())
    wasteful = [arm for arm, (read, trained, _, _) in ends.items() if read > trained]
    return len(ends) == 5 and wasteful == ["truncate"] and (folder / "losses.png").stat().st_size > 10_000


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
    place = [OUT.get(name, "--out"), str(tmp_path / "out")]
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *place, *SMALL[name]]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    if name in ENDS_WELL:
        assert ENDS_WELL[name](tmp_path / "out", done.stdout), done.stdout
    else:
        assert "yes" in done.stdout.splitlines()[-1] or "equal" in done.stdout, done.stdout


def test_the_results_are_said_as_they_are_also_where_there_is_no_gain(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(ROOT / "examples")
    orders, train_gpt = importlib.import_module("orders"), importlib.import_module("train_gpt")
    gains = {"constant rows": {"time": [0.25, 0.35], "data": [0.5, 0.5]}, "constant tokens": {"time": [1.25], "data": [0.75]}}
    assert train_gpt.sentence(gains) == (
        "Constant rows reached the baseline's final loss in 0.30 of its time and 0.50 of its data,"
        " and constant tokens reached it in 1.25 of its time and 0.75 of its data, no gain in time."
    )
    gains = {"constant rows": {"time": [None], "data": [None]}, "constant tokens": {"time": [0.3, None], "data": [0.4, None]}}
    assert train_gpt.sentence(gains) == (
        "Constant rows did not reach the baseline's final loss, and constant tokens did not reach it with 1 of 2 seeds."
    )
    below = {"shuffle=True": [1.5, 1.5], "random rows": [1.75, 2.0]}
    for mean, words in ((2.0, "within"), (2.5, "0.500 above")):
        losses = {"4 rows": below, "1 row": {"shuffle=True": [mean, mean], "random rows": [1.75, 2.0]}}
        assert orders.sentence(losses) == (
            "The mean loss of shuffle=True is 0.250 below the seeds' range of random rows with 4 rows,"
            f" and {words} it with 1 row."
        )


def test_every_example_is_run():
    examples = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"corpus", "gpt"}
    assert examples == set(SMALL)
