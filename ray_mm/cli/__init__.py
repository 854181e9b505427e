"""``ray-mm``: verbs only; every verb is one call into the package.

    main.py     the entry point
    common.py   what all verbs share
    jobs.py     verbs on this machine
    cluster.py  verbs on a cluster
    registry.py verbs on a registry of models

Exit status: 0 done; 1 failed; 2 the job file or the call is wrong; 3 a gate refused; 130 interrupted; 143 asked to end.
Nothing heavy is imported before a verb needs it: ``--help`` and ``check`` answer at once.
"""

# A verb is known once its module is imported; in the order of --help.
from ray_mm.cli import jobs as jobs, cluster as cluster, registry as registry  # isort: skip
from ray_mm.cli.common import app as app
from ray_mm.cli.main import main as main
