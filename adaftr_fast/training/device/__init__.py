"""Training on a GPU without waiting for it.

- Batches are packed into one buffer each and copied while the batch before trains (``feed``).
- Forward and backward are replayed as a CUDA graph (``graph``).
- A lack of memory is reported with what to change (``memory``).

All calls of ``torch.cuda`` that order streams stand in ``cuda``, so that the rest is tested without a GPU. Losses and
flagged ids are read every ``training.sync_steps`` steps, by the trainer.
"""
