"""Saving, resuming and restoring a run.

The terms:

- *state*: all tensors that training changes: parameters, buffers, optimizer states, random
  generators (``state``).
- *progress*: the epoch, the step and the records of finished epochs (``progress``).
- *snapshot*: the state and the progress of an unfinished run, in the folder ``last/``
  (``snapshots``). A thread writes it while training continues. A run *resumes* from its newest
  snapshot and ends with the same bits. A run *restarts* if its snapshots are discarded.
- *best weights*: the weights of the epoch with the best mean validation AUC (``training.files``).
- *checkpoint*: the best weights with their description, in the folder ``best/`` (``weights``).
  Evaluation, export and warm starts read it.

Rank 0 reads and writes the files of replicated tables, and sends their content to the other ranks.
With sharded tables each rank reads and writes the rows that it holds (``files``).
"""
