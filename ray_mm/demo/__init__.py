"""A generated world that shows the whole path: no download, no network, a few minutes on a laptop.

scenes.py    what happens on the road, and the right action: the truth behind a sample
camera.py    a scene → the picture that a camera behind the windscreen takes, with optics.py and objects.py
sensors.py   a scene → radar points, an IMU series, a spoken instruction
files.py     scenes → raw files and a table, as a user would bring them
jobs.py      the four job files
demo.py      raw files → dataset → checkpoint → report → artifact, through the same jobs as everyone's
"""

from ray_mm.demo.demo import run_demo

__all__ = ["run_demo"]
