"""`quota demo`: the whole package on the bundled model, in one run."""
