"""Plain PyTorch in real processes: DDP, FSDP2, distributed checkpoints, ``torchrun``, and tensor-parallel peers.

The scripts' processes are few, as starting one costs most: ``begin`` and ``go_on`` of ``tests/stacks/pytorch.py``, each on
one rank and on two. Whichever test first asks for a launch makes it, for the other processes of pytest too.
"""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from stack import ROWS, TOKENS, expected, launch

from slw_data import ConstantSchedule, LinearSchedule, SLWDataset, SLWLoader, StateError

STEPS, STOP, SEEN = 20, 10, 10  # as in the script
SCRIPT = Path(__file__).parent / "stacks" / "pytorch.py"


@pytest.fixture(scope="session")
def launched(tmp_path_factory):
    """A function from an act and a number of ranks to their results."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "pytorch"
    folder.mkdir(exist_ok=True)

    def once(act, world):
        if act == "go_on":  # from what these have saved
            for many in (1, 2):
                once("begin", many)
        own, how = folder / f"{act} {world}", under_torchrun if (act, world) == ("go_on", 2) else launch_ranks
        with open(folder / f"{act} {world}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (own / "results.json").exists():
                results = how(world, own, act=act, at=str(folder))
                (own / "results.json").write_text(json.dumps(results), encoding="utf-8")
        return json.loads((own / "results.json").read_text(encoding="utf-8"))

    return once


def launch_ranks(world, folder, **options):
    return launch("pytorch", world, folder, **options)


def under_torchrun(world, folder, **options):
    """As ``launch``, by the command that people use."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world), str(SCRIPT)]
    command += [json.dumps(options), f"{folder}/{{RANK}}.json"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(world)]


def plain(batches):
    """As they come back from JSON."""
    return [list(batch) for batch in batches]


def joined(batches, many):
    """Batches of ``many`` times the rows."""
    groups = [batches[i : i + many] for i in range(0, len(batches), many)]
    return [[*group[0][:2], [row for _, _, rows in group for row in rows]] for group in groups]


# -- what the model sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stack", "world"), [("plain", 1), ("ddp", 2), ("fsdp2", 2)])
def test_the_model_sees_the_rows_of_its_rank_at_the_length_of_the_step(launched, stack, world):
    ranks = launched("begin", world)
    for workers in (0, 2):
        for accum in (1, 3):
            seen = [found["seen"][f"{stack} {workers} {accum}"] for found in ranks]
            for rank in range(world):
                assert seen[rank] == plain(expected(SEEN, world=world, rank=rank, accum=accum)), (workers, accum, rank)
            shapes = [[(step, length, len(rows), len(rows[0])) for step, length, rows in batches] for batches in seen]
            assert shapes == [shapes[0]] * world and len(shapes[0]) == SEEN * accum
            assert len({length for _, length, _, _ in shapes[0]}) == 4


def test_tensor_parallel_peers_see_the_same_batches_and_data_parallel_ranks_do_not(launched):
    ranks = [found["meshes"] for found in launched("begin", 2)]
    for rank, found in enumerate(ranks):
        assert found["1 x 2"]["seen"] == plain(expected(SEEN, accum=3))
        assert found["2 x 1"]["seen"] == plain(expected(SEEN, world=2, rank=rank, accum=3))
        assert found["1 x 2"]["pickled"] == [0, 1, expected(1)[0][2]]
        assert found["2 x 1"]["pickled"] == [rank, 2, expected(1, world=2, rank=rank)[0][2]]
    losses = [[found[mesh]["losses"] for found in ranks] for mesh in ("1 x 2", "2 x 1")]
    assert losses[0][0] == losses[0][1], "two halves of one model"
    assert losses[1][0] != losses[1][1] and len(losses[1][1]) == 3 * SEEN


# -- stop and go on ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stack", "world"), [("plain", 1), ("ddp", 2), ("fsdp2", 2)])
def test_a_run_goes_on_in_new_processes_to_the_same_parameters_bit_by_bit(launched, stack, world):
    whole, rest = launched("begin", world), launched("go_on", world)
    for rank in range(world):
        batches = expected(STEPS, world=world, rank=rank, accum=3)
        assert rest[rank][stack]["seen"] == plain(batches[STOP * 3 :])
        assert rest[rank][stack]["digest"] == whole[0]["digests"][stack] == whole[rank]["digests"][stack]


def test_a_distributed_checkpoint_of_two_ranks_goes_on_with_one(launched):
    [rest] = launched("go_on", 1)
    of_two = [expected(STEPS, world=2, rank=rank, accum=3)[STOP * 3 :] for rank in (0, 1)]
    both = plain(batch for pair in zip(*of_two, strict=True) for batch in pair)  # in the order of the plain loop
    assert rest[f"{ROWS} rows, 6 batches"] == both and len(both) == (STEPS - STOP) * 6
    assert rest[f"{3 * ROWS} rows, 2 batches"] == joined(both, 3)


# -- what must not be done ---------------------------------------------------------------------------------------------


def test_a_dataset_made_before_the_process_group_is_refused(launched):
    for rank, found in enumerate(launched("begin", 2)):
        assert found["too early"].startswith("ValueError: WORLD_SIZE=2, but no process group is initialised")
        assert "call torch.distributed.init_process_group first, or pass dp_rank and dp_world_size" in found["too early"]
        assert f"made on rank 0 of 1, this process is now {rank} of 2" in found["made early"]
        assert "make it after torch.distributed.init_process_group" in found["made early"]


def test_a_mesh_of_two_dimensions_or_beside_ranks_is_refused(launched):
    for rank, ranks in enumerate(launched("begin", 2)):
        for found in ranks["meshes"].values():
            named, unnamed = found["two dimensions"], found["unnamed"]
            assert named.startswith("ValueError: mesh must have one dimension") and unnamed.startswith("ValueError: mesh must")
            assert "has 2, ('dp', 'tp'): write mesh=mesh['dp']" in named
            assert "has 2 without names: give it mesh_dim_names, and write mesh=mesh['dp']" in unnamed
            assert "where several are data-parallel, pass dp_rank and dp_world_size" in named
            assert found["beside ranks"] == (
                "ValueError: mesh has its own dp_rank and dp_world_size: leave out dp_rank=0, dp_world_size=2, or the mesh"
            )
            assert "leave out dp_rank=0, or the mesh" in found["beside a rank"]
        outside = "ValueError: this process, rank 1, is not in the mesh of 1 ranks"
        assert ranks["no member"] == ("no error", outside)[rank]


@pytest.mark.parametrize("mesh", ["dp", (2, 1), {"dp": 2}, np.arange(2)], ids=repr)
def test_what_is_no_mesh_is_refused(mesh):
    facts = "mesh must be a torch.distributed DeviceMesh of one dimension", type(mesh).__name__, "mesh=device_mesh['dp']"
    refused(lambda: SLWDataset(TOKENS, ConstantSchedule(8), batch_size=2, mesh=mesh), *facts, error=TypeError)


def test_states_of_ranks_with_their_own_parts_are_refused_elsewhere(launched):
    states = [found["sharded"]["state"] for found in launched("begin", 2)]

    def loader(rank, world):
        schedule, part = LinearSchedule(4, 16, warmup_steps=8, multiple_of=4), np.array_split(TOKENS, 2)[rank]
        options = {"batch_size": 2 * ROWS // world, "total_steps": STEPS, "sharded": True}
        return SLWLoader(SLWDataset(part, schedule, dp_rank=rank, dp_world_size=world, **options))

    for rank in (0, 1):
        own = loader(rank, 2)
        facts = f"dp_rank: saved {1 - rank}, current {rank}", "With sharded=True each rank loads its own state"
        refused(lambda own=own, rank=rank: own.load_state_dict(states[1 - rank]), *facts, error=StateError)
        assert own.step == 0
        own.load_state_dict(states[rank])
        assert own.step == 3
    facts = "dp_world_size: saved 2, current 1", "With sharded=True each rank loads its own state"
    refused(lambda: loader(0, 1).load_state_dict(states[0]), *facts, error=StateError)


def test_a_distributed_checkpoint_mixes_states_of_ranks_under_one_key_and_keeps_them_under_two(launched):
    found = [ranks["sharded"] for ranks in launched("begin", 2)]
    assert any(rank["mixed"].startswith("StateError: the state is ") for rank in found)
    for rank in found:
        assert rank["steps"] == [0 if rank["mixed"] != "no error" else 3, 3]
