"""`quota report`: one HTML file that says what a checkpoint is, what it costs, and what it looked at.

    gather.py     all that the page tells, as one record: of files, and, for a suite, of answers (asked.py)
    parts.py      bytes by part of the model
    pictures.py   pictures of questions, and a veil for what each cut dropped, as data: URIs
    plots.py      the plots, as inline SVG whose colours are the page's (svg.py)
    render.py     the record through the template: page.html.j2, page.macros.j2, page.css, page.js

The file loads nothing from anywhere, and for one record it is the same to the last byte.
"""
