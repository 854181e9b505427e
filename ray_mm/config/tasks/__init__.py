"""``model.task`` of a train job: what is learned, and whether the fields suit it.

figures.py      by which figures models of a task are compared
sample.py       classify, multilabel, regress
maps.py         segment, grid
retrieve.py     find one side of a sample by another
reconstruct.py  say again what is seen
several.py      several labels at once
kinds.py        all of them together
fit.py          whether a task suits a model and a dataset
training.py     whether it goes with the settings of a training
"""

from ray_mm.config.tasks.figures import FIGURES as FIGURES
from ray_mm.config.tasks.figures import HIGHER_IS_BETTER as HIGHER_IS_BETTER
from ray_mm.config.tasks.figures import TaskFigures as TaskFigures
from ray_mm.config.tasks.fit import check_label as check_label
from ray_mm.config.tasks.fit import check_task as check_task
from ray_mm.config.tasks.kinds import LabelledTask as LabelledTask
from ray_mm.config.tasks.kinds import TaskConfig as TaskConfig
from ray_mm.config.tasks.kinds import labelled_tasks as labelled_tasks
from ray_mm.config.tasks.kinds import labels_of as labels_of
from ray_mm.config.tasks.maps import GridTask as GridTask
from ray_mm.config.tasks.maps import MapTask as MapTask
from ray_mm.config.tasks.maps import SegmentTask as SegmentTask
from ray_mm.config.tasks.reconstruct import ReconstructTask as ReconstructTask
from ray_mm.config.tasks.retrieve import RetrieveTask as RetrieveTask
from ray_mm.config.tasks.sample import ClassifyTask as ClassifyTask
from ray_mm.config.tasks.sample import MultilabelTask as MultilabelTask
from ray_mm.config.tasks.sample import RegressTask as RegressTask
from ray_mm.config.tasks.sample import SampleTask as SampleTask
from ray_mm.config.tasks.several import SeveralTask as SeveralTask
from ray_mm.config.tasks.training import check_settings as check_settings
