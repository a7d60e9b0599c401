"""Lightning's Trainer takes the loader as it is: each rank trains on its own rows of each step, checkpoints go on exactly."""

import importlib.util
import itertools
import logging
import shutil
import warnings

import pytest
import torch
from refusals import refused
from stack import ROWS, TOKENS, expected, expected_divided, launch

if importlib.util.find_spec("lightning") is None:
    pytest.skip("Lightning is not installed: pip install 'slw_data[lightning]'", allow_module_level=True)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what it imports
    from lightning.pytorch.loggers.logger import DummyLogger
    from stacks.lightning_fit import SCHEDULE, Model, divided, fit, go_on, make_loader

from slw_data import SLWDataset, SLWLoader, StagedSchedule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # of torch, as Lightning 2.6 uses it
    pytest.mark.filterwarnings("ignore:.*`__len__` could be inaccurate:UserWarning"),  # Lightning's guess; these tests count
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* is not empty:UserWarning"),  # where a run goes on
]


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Lightning logs at every turn; the levels are the process's."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


# -- on one process, and on two ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two processes"])
def runs(request, tmp_path_factory):
    """What each rank found: up to the stop, in other processes after it (alone, that is this process), and on the other
    number of ranks from the checkpoint of a divided stream."""
    folder = tmp_path_factory.mktemp("lightning")
    at = str(folder / "checkpoints")
    begun = launch("lightning_fit", request.param, folder / "begin", name="begin", at=at)
    shutil.copy(f"{at} divided/step=10.ckpt", f"{at} kept.ckpt")
    if request.param == 1:
        others = launch("lightning_fit", 2, folder / "others", name="divided", at=at)
        return begun, [go_on(at)], others
    return begun, launch("lightning_fit", request.param, folder / "go_on", name="go_on", at=at), [divided(at)]


def listed(seen):
    return [tuple(batch) for batch in seen]


def test_each_rank_trains_on_its_rows_at_the_length_of_each_step(runs):
    begun, _, _ = runs
    for rank, found in enumerate(begun):
        assert set(found["seen"]) == {"0 1", "0 3", "2 1", "2 3"}
        for name, seen in found["seen"].items():
            accum = int(name.split()[1])
            assert listed(seen) == expected(10, world=len(begun), rank=rank, accum=accum), (rank, name)


def test_all_ranks_have_one_length_at_each_step(runs):
    begun, _, _ = runs
    for name in begun[0]["seen"]:
        shapes = [[(step, length) for step, length, _ in found["seen"][name]] for found in begun]
        assert all(shape == shapes[0] for shape in shapes) and {length for _, length in shapes[0]} == {4, 8, 12, 16}


def test_a_checkpoint_goes_on_in_new_processes_with_other_workers_to_the_same_parameters(runs):
    begun, gone_on, _ = runs
    for rank, (first, second) in enumerate(zip(begun, gone_on, strict=True)):
        assert listed(second["seen"]) == expected(20, world=len(begun), rank=rank, accum=3)[30:]
        assert second["digest"] == first["digest"] == begun[0]["digest"]


def test_a_checkpoint_of_a_divided_stream_goes_on_with_as_many_ranks_or_others(runs):
    """Lightning keeps what rank 0 has, and that must be the shards of both."""
    begun, gone_on, others = runs
    for rank, (first, second) in enumerate(zip(begun, gone_on, strict=True)):
        wanted = expected_divided(20, world=len(begun), rank=rank, accum=2)
        assert listed(first["divided"]["seen"]) == wanted and listed(second["divided"]["seen"]) == wanted[20:]
        assert second["divided"]["digest"] == first["divided"]["digest"]
    assert len(others) == 3 - len(begun)
    for rank, other in enumerate(others):
        assert listed(other["seen"]) == expected_divided(20, world=len(others), rank=rank, accum=2)[20:]


def test_with_ddp_a_loader_from_before_the_process_group_is_refused(runs):
    for rank, found in enumerate(runs[0] if len(runs[0]) == 2 else ()):
        assert "no process group is initialised" in found["too early"]
        assert f"made on rank 0 of 1, this process is now {rank} of 2" in found["made early"]


# -- in this process ---------------------------------------------------------------------------------------------------


class ByHand(Model):
    """Steps once for three batches, on its own."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx).backward()
        if batch_idx % 3 == 2:
            self.optimizers().step()


class OfSeveral(Model):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["text"][0], batch_idx)


class Kept(DummyLogger):
    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))


def endless():
    """The tokens in documents, again and again."""
    while True:
        for start in range(0, len(TOKENS), 50):
            yield TOKENS[start : start + 50]


def test_B047_batch_7_follows_a_checkpoint_of_batch_7(tmp_path):
    whole = fit(make_loader(total_steps=12), save=(tmp_path, 7), max_steps=12).seen
    again = fit(make_loader(total_steps=12, workers=2), save=(tmp_path, 7), load=tmp_path / "step=7.ckpt", max_steps=12).seen
    assert whole == expected(12) and again == whole[7:] and again[0][0] == 7


def test_the_state_is_in_the_checkpoint_as_the_loader_gives_it(tmp_path):
    loader = make_loader(total_steps=12)
    fit(loader, save=(tmp_path, 12), max_steps=12)
    saved = torch.load(tmp_path / "step=12.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"] == [loader.state_dict()]


def test_length_rows_and_tokens_are_logged_with_the_batch_that_they_are_of():
    logged = fit(make_loader(total_steps=10, grad_accum_steps=2), max_steps=10, accumulate_grad_batches=2).logged
    tokens = itertools.accumulate(ROWS * length for _, length, _ in expected(10, accum=2))
    assert logged == [
        {"slw/sequence_length": length, "slw/rows": ROWS, "slw/tokens_seen": seen}
        for (_, length, _), seen in zip(expected(10, accum=2), tokens, strict=True)
    ]


def test_tokens_are_counted_exactly_beyond_what_a_float32_holds():
    dataset = SLWDataset(TOKENS, StagedSchedule([8192, 1], [2048]), batch_size=1, total_steps=2051)
    loader = SLWLoader(dataset)
    loader.seek(2048)
    model = fit(loader, max_steps=3)
    assert model.logged[-1]["slw/tokens_seen"] == 2**24 + 3 != torch.tensor(2**24 + 3.0).item()


def test_what_is_logged_reaches_a_logger_from_a_loader_among_others():
    kept, others = Kept(), [torch.zeros(1)] * 3
    options = {"max_steps": 3, "logger": kept, "log_every_n_steps": 1}
    model = fit({"text": [make_loader(total_steps=3)], "other": others}, module=OfSeveral, **options)
    assert model.seen == expected(3)
    wanted = [{"slw/sequence_length": 4, "slw/rows": ROWS, "slw/tokens_seen": 8 * n, "epoch": 0} for n in (1, 2, 3)]
    assert kept.rows == list(enumerate(wanted))


def test_without_a_length_lightning_is_a_batch_ahead_and_the_logger_refuses(tmp_path):
    refused(
        lambda: fit(make_loader(endless), max_steps=12),
        "reads one ahead", "would skip a batch", "total_steps", "limit_train_batches", error=ValueError,
    )  # fmt: skip
    fit(make_loader(endless), with_logger=False, save=(tmp_path, 7), max_steps=7)
    saved = torch.load(tmp_path / "step=7.ckpt", weights_only=True)
    assert saved["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["step"] == 8, "the refusal is needed no more"


def test_an_endless_stream_goes_on_exactly_with_a_limit_of_batches(tmp_path):
    options = {"max_steps": 20, "limit_train_batches": 12, "accumulate_grad_batches": 3, "save": (tmp_path, 10)}
    whole = fit(make_loader(endless, grad_accum_steps=3), **options).seen
    assert whole == expected(20, accum=3), "five epochs of four steps, and one warmup"
    again = fit(make_loader(endless, workers=2, grad_accum_steps=3), load=tmp_path / "step=10.ckpt", **options)
    assert again.seen == whole[30:]


@pytest.mark.parametrize("trainer, dataset", [(1, 3), (3, 1), (2, 3)])
def test_another_accumulation_than_the_dataset_s_is_refused_with_both_numbers(trainer, dataset):
    refused(
        lambda: fit(make_loader(total_steps=6, grad_accum_steps=dataset), max_steps=6, accumulate_grad_batches=trainer),
        f"accumulate_grad_batches={trainer}", f"grad_accum_steps={dataset}", error=ValueError,
    )  # fmt: skip


def test_an_accumulation_that_changes_is_refused_by_name():
    refused(
        lambda: fit(make_loader(total_steps=6, grad_accum_steps=StagedSchedule([1, 2], [3])), max_steps=6),
        "the Trainer accumulates a fixed number", "loader.steps()",
    )  # fmt: skip


def test_whoever_steps_by_hand_accumulates_by_hand():
    assert fit(make_loader(total_steps=6, grad_accum_steps=3), module=ByHand, max_steps=6).seen == expected(6, accum=3)


def test_a_limit_that_would_end_a_step_early_is_refused():
    options = {"max_steps": 6, "accumulate_grad_batches": 3, "limit_train_batches": 8}
    refused(
        lambda: fit(make_loader(total_steps=6, grad_accum_steps=3), **options),
        "8 batches", "grad_accum_steps=3", "multiple of 3", error=ValueError,
    )  # fmt: skip


def test_more_steps_than_there_are_would_never_end_and_are_refused():
    refused(lambda: fit(make_loader(total_steps=6), max_steps=7), "after 6 steps", "max_steps=7", error=ValueError)
    refused(lambda: fit(make_loader(total_steps=6), max_epochs=-1), "after 6 steps", "max_steps=-1", error=ValueError)
    documents = [TOKENS[start : start + 50] for start in range(0, 400, 50)]  # of which nobody knows how many
    with pytest.warns(UserWarning, match="is finished"):
        refused(
            lambda: fit(make_loader(documents), max_steps=30, limit_train_batches=4),
            "after 16 steps", "max_steps=30", error=ValueError,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning")
@pytest.mark.parametrize(
    "loaders, found",
    [
        (torch.utils.data.DataLoader(SLWDataset(TOKENS, SCHEDULE, batch_size=ROWS), batch_size=None), "DataLoader"),
        ([make_loader(), make_loader()], "SLWLoader, SLWLoader"),
    ],
)
def test_there_must_be_one_loader_to_log(loaders, found):
    refused(lambda: fit(loaders, max_steps=2), f"found {found}", "SLWLoader(dataset)", error=TypeError)
