"""Hugging Face's Trainer on real text, with nothing to download: a small Llama from a config is trained along a warmup from
8 to 128 tokens; once more, stopped in the middle, and continued from its checkpoint by a new Trainer with worker
processes. Both end with the same parameters, bit for bit, although the model has dropout.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import torch
from corpus import VOCAB_SIZE, build_corpus
from transformers import LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments
from transformers.utils import logging

from slw_data import LinearSchedule, SLWDataset, open_tokens
from slw_data.integrations.huggingface import SLWTrainer


def make_dataset(path: Path, steps: int) -> SLWDataset:
    """A dataset of finished batches: 16 rows, of 8 tokens at first, and of 128 for the last third of the steps."""
    tokens = open_tokens(path, dtype="uint16")
    schedule = LinearSchedule(8, 128, warmup_fraction=2 / 3)
    # labels="both": this model shifts labels itself, and takes shift_labels as they are, so that no target is lost
    return SLWDataset(tokens, schedule, batch_size=16, total_steps=steps, shuffle=True, labels="both", vocab_size=VOCAB_SIZE)


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, attention_dropout=0.1, bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train(path: Path, folder: Path, steps: int, resume: bool = False, **arguments: object) -> SLWTrainer:
    """A new model, Trainer and loader, as in a new process; from the last checkpoint in ``folder`` on, or from the start."""
    args = TrainingArguments(
        str(folder), learning_rate=3e-3, lr_scheduler_type="constant", use_cpu=True, disable_tqdm=True, report_to=[],
        logging_steps=max(1, steps // 6), save_steps=steps // 2, include_num_input_tokens_seen="all", log_level="error",
        **arguments,
    )  # fmt: skip
    trainer = SLWTrainer(make_model(), args, train_dataset=make_dataset(path, steps))
    trainer.remove_callback(PrinterCallback)  # the table below shows the same
    trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def digest(trainer: SLWTrainer) -> str:
    tensors = (parameter.detach().numpy().tobytes() for parameter in trainer.model.parameters())
    return hashlib.blake2b(b"".join(tensors)).hexdigest()


def run(folder: Path, steps: int, max_tokens: int) -> bool:
    """The whole demonstration; False if the continued run ended elsewhere."""
    path, _ = build_corpus(folder / "stdlib.bin", max_tokens=max_tokens)
    whole = train(path, folder / "whole", steps)
    train(path, folder / "stopped", steps, max_steps=steps // 2)
    continued = train(path, folder / "stopped", steps, resume=True, dataloader_num_workers=2)

    print(f"{'step':>5}{'length':>8}{'tokens seen':>13}{'loss':>8}{'loss, continued':>17}")
    for log, other in zip(whole.state.log_history, continued.state.log_history, strict=True):
        if "loss" in log:
            shown = log["step"], log["slw/sequence_length"], log["slw/tokens_seen"], log["loss"], other["loss"]
            print("{:>5}{:>8}{:>13,}{:>8.4f}{:>17.4f}".format(*shown))
    counted = whole.state.num_input_tokens_seen == whole.train_dataset.tokens_seen == continued.state.num_input_tokens_seen
    equal = digest(whole) == digest(continued)
    print(f"stopped and continued at step {steps // 2}; tokens counted alike: {'yes' if counted else 'NO'}")
    print(f"parameters equal: {'yes' if equal else 'NO'}")
    return equal and counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for the corpus and the checkpoints (default: a temporary one)")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of a whole run (default: 60)")
    parser.add_argument("--max-tokens", type=int, default=2_000_000, help="of the corpus (default: 2,000,000)")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the model is small
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not run(folder, options.steps, options.max_tokens):
            raise SystemExit("the continued run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
