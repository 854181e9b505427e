"""The version of the package, and of the formats that it writes to disk."""

__version__ = "0.1.0"

DATASET_FORMAT = 2
"""Version of ``dataset.json`` and the index; a reader refuses a newer one."""

CHECKPOINT_FORMAT = 1
"""Version of a checkpoint's ``model.json`` and ``preprocessor.json``."""
