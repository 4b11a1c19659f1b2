"""The training run: batches, loss, optimizer, checkpoints, logs."""
