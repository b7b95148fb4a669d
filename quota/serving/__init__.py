"""The servers and engines that run a checkpoint."""
