"""The public surface is frozen: names and signatures; imports go down only; importing the package is light.

Annotations are left out, as their text differs from one Python to another: mypy checks them.
"""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import slw_data

PACKAGE = Path(slw_data.__file__).parent

WARMUP = (
    "(min_length, max_length, *, warmup_steps=None, warmup_fraction=None, warmup_tokens=None, multiple_of=8,"
    " max_distinct=None"
)
SURFACE = {
    "Block": "(position, offsets, columns)",
    "BucketSchedule": "(lengths, *, weights=None, num_cycles=1, seed=0, steps=None)",
    "ConstantSchedule": "(length)",
    "CosineSchedule": f"{WARMUP})",
    "CyclicSchedule": "(schedule, num_cycles)",
    "DataError": "ValueError",
    "DocumentStream": "protocol: blocks columns fingerprint name not_exact passes sharded",
    "DoublingSchedule": f"{WARMUP})",
    "ExponentialSchedule": f"{WARMUP})",
    "LinearSchedule": f"{WARMUP})",
    "RootSchedule": f"{WARMUP}, degree=2)",
    "SLWDataset": (
        "(source, schedule_or_plan, *, batch_size=None, tokens_per_batch=None, grad_accum_steps=1, total_steps=None,"
        " total_tokens=None, epochs=None, shuffle=False, seed=0, num_lanes=None, num_shards=1, shuffle_buffer=None,"
        " mode='stream', labels='unshifted', columns=('input_ids',), column='input_ids', text_column=None, tokenizer=None,"
        " append_eos=None, extras=(), vocab_size=None, eos_id=None, pad_id=None, preserve_eos=False, max_documents=None,"
        " flat_multiple_of=1, bos_id=None, sharded=False, dp_rank=None, dp_world_size=None, mesh=None)"
    ),
    "SLWLoader": (
        "(dataset, *, num_workers=0, prefetch=2, pin_memory=False, prefetch_factor=None, persistent_workers=False,"
        " multiprocessing_context=None, timeout=0, progress=False)"
    ),
    "ScheduleError": "ValueError",
    "SequenceLengthPlan": (
        "(schedule, *, batch_size=None, tokens_per_batch=None, grad_accum_steps=1, world_size=1, total_steps=None,"
        " total_tokens=None)"
    ),
    "SineSchedule": f"{WARMUP})",
    "Stage": "(start, stop, length, rows, grad_accum_steps, rows_before, tokens_before)",
    "StagedSchedule": "(lengths, boundaries, *, unit='steps')",
    "StateError": "ValueError",
    "TokenStore": "protocol: __len__ documents dtype fingerprint gather name read",
    "check_ranks_agree": "(loader, group=None)",
    "from_composer": "(*, total_steps, duration=0.3, min_seq_length=8, max_seq_length=1024, step_size=8)",
    "from_deepspeed": "(config)",
    "from_megatron": "(text, *, sequence_length=None, micro_batch_size=None, world_size=1)",
    "from_olmo_core": (
        "(*, min_sequence_length=128, max_sequence_length, warmup_steps=2000, truncate=False, keep_multiple_of=128)"
    ),
    "from_skyladder": "(*, max_length=8192, initial_length=32, steps_per_increase=8, round_to=None)",
    "gather_state": "(loader, group=None)",
    "load_state": "(path, loader, **options)",
    "open_stream": "(x, *, column='input_ids', columns=None, text_column=None, tokenizer=None, append_eos=None)",
    "open_tokens": "(x, *, dtype=None, column='input_ids', vocab_size=None, eos_id=None)",
    "save_state": "(path, loader)",
    "set_batch_sequence_length": "(batch, curr_seq_len, truncate=True, preserve_end_of_sequence=False)",
}
MEMBERS = {
    "Block.read": "(self, column, start, stop)",
    "DocumentStream.blocks": "(self, epoch, position=None)",
    "SLWDataset.load_state_dict": "(self, state_dict, *, strict=True)",
    "SLWDataset.num_batches": "property",
    "SLWDataset.state_dict": "(self)",
    "SLWDataset.tokens_discarded": "property",
    "SLWDataset.tokens_left": "property",
    "SLWLoader.close": "(self)",
    "SLWLoader.epoch": "property",
    "SLWLoader.load_state_dict": "(self, state_dict, *, strict=True, expected_step=None)",
    "SLWLoader.metrics": "(self)",
    "SLWLoader.reset": "(self)",
    "SLWLoader.seek": "(self, step)",
    "SLWLoader.sequence_length": "property",
    "SLWLoader.state_dict": "(self)",
    "SLWLoader.step": "property",
    "SLWLoader.tokens_left": "property",
    "SLWLoader.tokens_seen": "property",
    "SequenceLengthPlan.cost": "(self, *, num_params, num_layers, hidden_size)",
    "SequenceLengthPlan.describe": "(self)",
    "SequenceLengthPlan.fingerprint": "property",
    "SequenceLengthPlan.global_rows": "(self, step)",
    "SequenceLengthPlan.largest_batch": "(self)",
    "SequenceLengthPlan.length": "(self, step)",
    "SequenceLengthPlan.lengths": "property",
    "SequenceLengthPlan.plot": "(self, ax=None)",
    "SequenceLengthPlan.rows": "(self, step)",
    "SequenceLengthPlan.stages": "property",
    "SLWDataset.describe": "(self)",
    "SLWLoader.steps": "(self)",
    "SequenceLengthPlan.step_at": "(self, tokens)",
    "SequenceLengthPlan.tokens": "(self, step)",
    "SequenceLengthPlan.tokens_before": "(self, step)",
    "SequenceLengthPlan.total_steps": "property",
    "SequenceLengthPlan.total_tokens": "property",
    "TokenStore.gather": "(self, starts, length, out)",
    "TokenStore.read": "(self, start, stop)",
}


def described(thing):
    """The signature without annotations; for what has none, what it is."""
    if inspect.isclass(thing) and issubclass(thing, Exception):
        return thing.__base__.__name__
    if getattr(thing, "_is_protocol", False):
        return "protocol: " + " ".join(sorted(n for n in vars(thing) if n == "__len__" or not n.startswith("_")))
    if not callable(thing):
        return "property"
    signature = inspect.signature(thing)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_the_public_names_and_their_signatures_are_the_frozen_ones():
    assert {name: described(getattr(slw_data, name)) for name in slw_data.__all__} == SURFACE
    assert slw_data.__all__ == sorted(slw_data.__all__)
    public = [name for name, value in vars(slw_data).items() if name[0] != "_" and not inspect.ismodule(value)]
    assert sorted(public) == sorted(SURFACE)


def test_the_fixed_methods_and_properties_are_the_frozen_ones():
    found = {}
    for path in MEMBERS:
        owner, member = path.split(".")
        found[path] = described(inspect.getattr_static(getattr(slw_data, owner), member, lambda: "is missing"))
    assert found == MEMBERS


# -- imports -----------------------------------------------------------------------------------------------------------

# Each line may import from those above it only. Within a package the rule is that there is no cycle; of a package whose
# modules stand in several layers, each is named.
LAYERS = """
errors cached
arguments
functional ranks
plan
compat training tuning sources
order
batch
state
run
delivery
dataset
loader
delivery.checkpoint delivery.agreement
testing integrations cli
__main__
"""
LEVELS = {name: level for level, line in enumerate(LAYERS.split("\n")) for name in line.split()}


def layer(module):
    """The name in LAYERS that ``module`` stands under."""
    parts = module.split(".")[1:3]
    return ".".join(parts) if ".".join(parts) in LEVELS else f"{parts[0] if parts else ''}"


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source, modules):
    """The package's own modules that some source code imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "slw_data"}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used here"
            if node.module and node.module.split(".")[0] == "slw_data":
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= names & modules or {node.module}
    return found


def imports():
    paths = sorted(PACKAGE.rglob("*.py"))
    modules = {module_of(path) for path in paths}
    return {module_of(path): imported(path.read_text(encoding="utf-8"), modules) for path in paths}


def upward(graph):
    """The imports that do not go down, as ``(from, to)``."""
    wrong = []
    for module, targets in graph.items():
        if module == "slw_data":  # the face of all
            continue
        for target in targets:
            own, other = layer(module), layer(target)
            if own != other and not LEVELS.get(other, 99) < LEVELS[own]:
                wrong.append((module, target))
    return wrong


def cycle(graph):
    """Some modules that import each other in a circle; none if there are no such."""
    left = {module: set(targets) & set(graph) for module, targets in graph.items()}
    while free := [module for module, targets in left.items() if not targets]:
        left = {module: targets - set(free) for module, targets in left.items() if module not in free}
    return sorted(left)


def test_every_module_has_a_layer_and_imports_only_from_lower_ones():
    graph = imports()
    assert {layer(module) for module in graph if module != "slw_data"} == set(LEVELS), "see LAYERS"
    assert upward(graph) == []


def test_no_modules_import_each_other_in_a_circle():
    graph = imports()
    assert cycle(graph) == [] and len(graph) > 25 and sum(map(len, graph.values())) > 60


def test_a_wrong_import_would_be_found():
    modules = set(imports())
    lazy = "def f():\n    from slw_data.dataset import SLWDataset\n    import slw_data.loader"
    assert imported(lazy, modules) == {"slw_data.dataset", "slw_data.loader"}
    assert imported("from slw_data import plan, SLWLoader", modules) == {"slw_data.plan"}
    assert imported("from slw_data import SLWLoader", modules) == {"slw_data"}
    graph = {
        **imports(),
        "slw_data.order.lanes": {"slw_data.batch.reading"},
        "slw_data.sources.stores.npy": {"slw_data.sources.stores.opening"},
    }
    assert upward(graph) == [("slw_data.order.lanes", "slw_data.batch.reading")]
    assert {"slw_data.order.lanes", "slw_data.batch.reading", "slw_data.sources.stores.npy"} <= set(cycle(graph))
    assert upward({"slw_data.delivery.workers": {"slw_data.loader"}, "slw_data.plan.plan": {"slw_data"}}) == [
        ("slw_data.delivery.workers", "slw_data.loader"),
        ("slw_data.plan.plan", "slw_data"),
    ]


# -- a light import ----------------------------------------------------------------------------------------------------

HEAVY = ("datasets", "pyarrow", "transformers", "tqdm", "torchdata", "matplotlib", "yaml", "accelerate", "lightning", "pandas")


def heavy_after(statement):
    """The heavy packages that ``statement`` imports in a new process, beyond those that torch itself does."""
    code = f"import sys, torch, numpy; before = set(sys.modules); {statement}"
    code += f"; print([name for name in {HEAVY} if name in set(sys.modules) - before])"
    env = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True)
    return ast.literal_eval(done.stdout)


def test_importing_the_package_imports_nothing_heavy():
    assert heavy_after("import slw_data") == []


def test_a_heavy_import_would_be_found():
    pytest.importorskip("datasets")
    assert {"datasets", "pyarrow"} <= set(heavy_after("import slw_data, datasets"))
