"""Learning from episodes: advantages, batches, backends, the training loop and its report."""
