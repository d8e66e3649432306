"""The page of a task, by the name that the task gives."""

import importlib

from mhimdist.errors import ReportError
from mhimdist.pages.tasks.interface import TaskPage
from mhimdist.tasks import Task


def page_of(task: Task) -> TaskPage:
    """The page that a task names.

    Raises:
        ReportError: it cannot be imported, or is none.
    """
    module, _, name = task.page.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ReportError(
            f"the page of {task.name}: expected module:Class that can be imported here, got {task.page!r}: "
            f"{error}"
        ) from None
    if not (isinstance(found, type) and issubclass(found, TaskPage)):
        raise ReportError(
            f"the page of {task.name}: expected a class derived from mhimdist.pages.tasks.TaskPage, got "
            f"{found!r}"
        )
    return found()
