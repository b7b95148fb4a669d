"""The engines that run a checkpoint: a room above checkpoint, for those who answer many requests at once."""
