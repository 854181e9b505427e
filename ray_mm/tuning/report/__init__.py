"""One self-contained HTML file per search, made like that of an evaluation and in its style:

plots.py    a key's values against the metric, the trials over their epochs
render.py   search.html, search.css and a table of trials → the file
"""
