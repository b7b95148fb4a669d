"""Show a person what a checkpoint does: tables for the terminal, pictures of kept tokens, plots of the schedule."""
