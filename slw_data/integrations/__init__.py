"""Faces for training stacks that need more than an iterable; each module imports its stack, and nothing else does.

::

    huggingface    SLWTrainer, SLWTrainerMixin
    lightning      SequenceLengthLogger
    composer       batches and state as Composer's Trainer takes them
    torchtitan     batches and state as torchtitan takes them

Accelerate and plain PyTorch (DDP, FSDP2, ``torch.distributed.checkpoint``) take an :class:`slw_data.SLWLoader` as it is.
"""
