"""The training loop of all methods and tasks, and its run folder, checkpoints, ranks and trackers."""
