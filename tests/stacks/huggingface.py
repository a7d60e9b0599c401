"""Hugging Face's Trainer, alone and on two processes. ``worlds`` says which of the jobs below run together; see ``forked``."""

import hashlib
import json
import sys
import warnings
from pathlib import Path

import torch
from forked import in_worlds
from stack import DIVIDED, LONG, OF_STEP, ROWS, SHORT, TOKENS, VOCAB, WARMUP, main, part
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

sys.path.append(str(Path(__file__).parents[2]))  # the checkout that this file is of, where it is not installed
from slw_data import LinearSchedule, SLWDataset, SLWLoader, StagedSchedule
from slw_data.integrations.huggingface import SLWTrainer, SLWTrainerMixin

SCHEDULE = LinearSchedule(SHORT, LONG, warmup_steps=WARMUP, multiple_of=4)
QUIET = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_strategy": "no"}


def arguments(folder="run", kind=TrainingArguments, **options):
    return kind(folder, **{**QUIET, **options})


def dataset(source=TOKENS, accum=1, steps=20, **options):
    options = {"batch_size": ROWS, "grad_accum_steps": accum, "total_steps": steps, **options}
    return SLWDataset(source, SCHEDULE, **options)


def gpt2():
    """Its dropout is 0.1."""
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCAB, "n_positions": LONG, "n_embd": 16, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM"))


def llama():
    torch.manual_seed(1)
    sizes = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))


def watch(trainer):
    """(step, length, ids) of each forward in training, with the steps counted by the Trainer: a list that grows."""
    seen = []

    def note(model, args, batch):
        if model.training:
            seen.append((trainer.state.global_step, batch["input_ids"].shape[1], batch["input_ids"].tolist()))

    trainer.model.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def digest(model):
    return hashlib.blake2b(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


class StopAt(TrainerCallback):
    """Ends training at a step, whatever max_steps says: the learning rate is still that of the whole run."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step == self.step


class Rows(torch.utils.data.Dataset):
    """To evaluate on: rows of the full length."""

    def __len__(self):
        return 4

    def __getitem__(self, i):
        row = torch.from_numpy(TOKENS[i * LONG : (i + 1) * LONG].astype("int64"))
        return {"input_ids": row, "labels": row}


# -- jobs --------------------------------------------------------------------------------------------------------------


def sequence(workers, accum, steps=10):
    args = arguments(gradient_accumulation_steps=accum, dataloader_num_workers=workers)
    trainer = SLWTrainer(gpt2(), args, train_dataset=dataset(accum=accum, steps=steps))
    seen = watch(trainer)
    trainer.train()
    return seen


def run(folder, workers=0, stop=None, resume=False, accum=1):
    """Train 20 steps with dropout, up to a stop, or from the checkpoint at 10 to the end."""
    args = arguments(
        folder, gradient_accumulation_steps=accum, learning_rate=0.01, logging_strategy="steps", logging_steps=5,
        include_num_input_tokens_seen="all", save_strategy="steps", save_steps=10,
    )  # fmt: skip
    loader, model = SLWLoader(dataset(accum=accum), num_workers=workers), gpt2()
    trainer = SLWTrainer(model, args, train_dataset=loader, callbacks=[StopAt(stop)] if stop else [])
    trainer.train(resume_from_checkpoint=resume)
    log = [{name: entry.get(name) for name in LOGGED} for entry in trainer.state.log_history if "loss" in entry]
    return {
        "parameters": digest(model),
        "log": log,
        "tokens": trainer.state.num_input_tokens_seen,
        "files": sorted(path.name for path in Path(folder, "checkpoint-10").glob("slw*")),
        "loader": trainer.get_train_dataloader() is loader,
    }


LOGGED = ("step", "epoch", "loss", "learning_rate", "slw/sequence_length", "slw/rows", "slw/tokens_seen")


def resume_from(folder, edit=None, content=None):
    """Resume from a checkpoint whose state was changed: by a value of it, or as a whole (None: it is not there)."""
    path = Path(folder, "checkpoint-10", "slw_data.json")
    kept = path.read_text()
    path.unlink()
    if edit or content is not None:
        path.write_text(json.dumps({**json.loads(kept), **edit}) if edit else content)
    try:
        loader = SLWLoader(dataset())
        SLWTrainer(gpt2(), arguments(folder), train_dataset=loader).train(resume_from_checkpoint=f"{folder}/checkpoint-10")
    finally:
        assert loader.position[:2] == (0, 0)
        path.write_text(kept)


def shorter():
    """max_steps before the end of the plan, and a stream of which nobody knows the end; then training again."""
    trainer = SLWTrainer(gpt2(), arguments(max_steps=4), train_dataset=dataset())
    trainer.train()
    documents = [TOKENS[i : i + 100].tolist() for i in range(0, 2000, 100)]
    stream = SLWTrainer(gpt2(), arguments(max_steps=6), train_dataset=dataset(documents, steps=None))
    seen = watch(stream)
    stream.train()
    steps = [trainer.state.global_step, stream.state.global_step, stream.state.epoch]
    try:
        stream.train()
    except ValueError as error:
        return steps, seen, str(error)


def evaluate():
    """Evaluation at the full length, each second step."""
    args = arguments(eval_strategy="steps", eval_steps=2, per_device_eval_batch_size=4)
    trainer, shapes = SLWTrainer(gpt2(), args, train_dataset=dataset(steps=6), eval_dataset=Rows()), []
    seen = watch(trainer)
    trainer.model.register_forward_pre_hook(
        lambda model, args, batch: None if model.training else shapes.append(list(batch["input_ids"].shape)), with_kwargs=True
    )
    trainer.train()
    return seen, shapes, [entry["step"] for entry in trainer.state.log_history if "eval_loss" in entry]


def losses(labels):
    """What the Trainer logs as the loss of the first step."""
    trainer = SLWTrainer(
        llama(), arguments(logging_strategy="steps", logging_steps=1), train_dataset=dataset(steps=1, labels=labels)
    )
    trainer.train()
    return trainer.state.log_history[0]["loss"]


@torch.no_grad()
def by_hand(rows):
    """The mean cross entropy of that model over rows of one token more than their length; and without the last target."""
    rows, model = torch.tensor(rows), llama()
    logits = model(input_ids=rows[:, :-1]).logits.transpose(1, 2)
    cross_entropy = torch.nn.functional.cross_entropy
    return float(cross_entropy(logits, rows[:, 1:])), float(cross_entropy(logits[..., :-1], rows[:, 1:-1]))


def make(args=(), options=(), loss=False, explicit=None):
    """Only make a Trainer, of a dataset with these options."""
    args = arguments(**dict(args))  # before the dataset: this is what makes the process group
    options = {**dict(options), **(explicit or {})}
    loss = (lambda outputs, labels, num_items_in_batch: outputs.logits.sum()) if loss else None
    SLWTrainer(gpt2(), args, train_dataset=dataset(**options), compute_loss_func=loss)
    return "made"


def bare_array():
    SLWTrainer(gpt2(), arguments(), train_dataset=TOKENS)


def shuffle_buffer(**args):
    import datasets

    rows = datasets.Dataset.from_dict({"input_ids": TOKENS[:2000].reshape(20, 100)})
    source = rows.to_iterable_dataset().shuffle(seed=0, buffer_size=5)
    warnings.filterwarnings("ignore", "this run cannot be resumed exactly")
    SLWTrainer(gpt2(), arguments(**args), train_dataset=dataset(source, steps=3)).train()
    return "trained"


def changing_accumulation():
    SLWTrainer(gpt2(), arguments(), train_dataset=dataset(grad_accum_steps=StagedSchedule([1, 2], [3])))


def too_early():
    dataset()


def plain(loader=False, rows=1, **options):
    """Hugging Face's own Trainer."""
    given = SLWLoader(dataset()) if loader else dataset()
    Trainer(gpt2(), arguments(per_device_train_batch_size=rows, max_steps=6, **options), train_dataset=given).train()
    return "trained"


def sharded(folder, resume=False, swap=False):
    """Each rank reads its own half."""
    args = arguments(folder, save_strategy="steps", save_steps=3)
    rank, half = args.process_index, len(TOKENS) // 2
    source = TOKENS[rank * half : (rank + 1) * half]
    trainer = SLWTrainer(gpt2(), args, train_dataset=dataset(source, steps=6, sharded=True))
    if swap and rank == 0:
        first, second = (Path(folder, "checkpoint-3", f"slw_data_{r}.json") for r in (0, 1))
        content = first.read_text()
        first.write_text(second.read_text())
        second.write_text(content)
    torch.distributed.barrier()
    seen = watch(trainer)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-3" if resume else None)
    return [ids for _, _, ids in seen], sorted(path.name for path in Path(folder, "checkpoint-3").glob("slw*"))


def divided(folder, accum=1, workers=0, resume=False):
    """Train 20 steps with dropout on a divided stream and save at 10, or from there to the end on any number of ranks."""
    args = arguments(folder, gradient_accumulation_steps=accum, learning_rate=0.01, save_strategy="steps", save_steps=10)
    args = arguments(folder, gradient_accumulation_steps=accum, learning_rate=0.01) if resume else args
    rows = OF_STEP // args.world_size // accum
    loader = SLWLoader(dataset(part, accum=accum, batch_size=rows, **DIVIDED), num_workers=workers)
    trainer = SLWTrainer(gpt2(), args, train_dataset=loader)
    seen = watch(trainer)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-10" if resume else None)
    path = Path(folder, "checkpoint-10", "slw_data.json")
    return {"seen": seen, "parameters": digest(trainer.model), "shards": list(json.loads(path.read_text())["shards"])}


def sft(folder, extras=("position_ids",), resume=False):
    """TRL's SFTTrainer, as it is but for the mixin."""
    from tokenizers import Tokenizer, models
    from trl import SFTConfig, SFTTrainer

    warnings.simplefilter("default", FutureWarning)  # TRL's defaults are about to be renamed in transformers

    class SLWSFTTrainer(SLWTrainerMixin, SFTTrainer):
        pass

    words = Tokenizer(models.WordLevel({str(i): i for i in range(VOCAB)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="0", pad_token="0")
    args = arguments(
        folder, SFTConfig, logging_strategy="steps", logging_steps=2, save_strategy="steps", save_steps=4, bf16=False,
    )  # fmt: skip
    trainer = SLWSFTTrainer(
        llama(), args, train_dataset=dataset(steps=8, labels="both", extras=extras), processing_class=tokenizer
    )
    seen = watch(trainer)
    trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-4" if resume else None)
    return seen, digest(trainer.model), trainer.state.log_history


if __name__ == "__main__":
    main(lambda worlds: in_worlds(lambda name, options: globals()[name](**options), worlds))
