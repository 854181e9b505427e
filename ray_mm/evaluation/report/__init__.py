"""One self-contained HTML file per evaluation, in the order in which it is made:

    content.py   what a report is made of
    curves.py    a train run's metrics → its learning curves
    svg.py       axes, lines, dots
    plots.py     curves, calibration, predicted against true
    views.py     a field of a sample, as a person can look at it
    masks.py     a class for every cell of a map, as a picture
    cards.py     the worst and the best samples
    searches.py  what queries of a retrieval find
    reconstructions.py  samples beside what the model says of them
    words.py     how the main metric of a task is spoken of
    tiles.py     the headline figures
    tables.py    subsets, classes, confusions
    frame.py     what the pages of all stages have in common, page.html among it
    render.py    report.html and report.css → the file

No script, no request: a content security policy in the page forbids both.
"""
