"""What became of nights, as pages: night.html and history.html with retrain.css, in the style of an evaluation's report.

plots.py   figures, samples and seconds over the nights
render.py  a night → its page; all nights → the history
"""
