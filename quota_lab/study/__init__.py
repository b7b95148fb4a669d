"""The study: is quantising and pruning jointly better than one after the other, and what does each part contribute?

variants.py     one way to compress a model: scheme, calibration, pruning; what decides an outcome
schedules.py    keep ratios by other rules than equations (1) to (4), and the budget that costs as much as another
methods.py      FastV, PyramidDrop, VTW and the others as variants
tables.py       which variants make a table
keys.py         the content hash of all that decides an outcome
workshop.py     makes a variant, asks it the questions, and remembers the outcome under its content hash
figures.py      outcomes -> retention with intervals and spread
report.py       figures -> JSON, Markdown, plot
"""
