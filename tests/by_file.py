"""How files of tests are shared out to processes: as xdist's ``loadfile`` does it, and it goes on where a process dies."""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController


class ByFile(LoadFileScheduling):
    """A test during which its process died has failed; it is not run again. The rest of its file is.

    The class that it builds on gives such a test to one process after the other, and waits without end for a file that
    the dead process had done.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        """Returns the test that ran on a process that is no more, if one did."""
        units = self.assigned_work.pop(node)
        open_tests = [(unit, test) for unit in units.values() for test, done in unit.items() if not done]
        if not open_tests:
            return None
        unit, crashed = open_tests[0]
        unit[crashed] = True
        for scope, tests in units.items():
            if not all(tests.values()):
                self.workqueue[scope] = tests
                self.workqueue.move_to_end(scope, last=False)
        for other in self.assigned_work:
            self._reschedule(other)
        return crashed
