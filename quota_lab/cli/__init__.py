"""The laboratory's commands: one module each, found by the entry-point group `quota.commands`."""
