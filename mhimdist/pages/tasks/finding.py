"""The page of a task, by the name that the task gives."""

from mhimdist.config.imported import imported
from mhimdist.errors import ReportError
from mhimdist.pages.tasks.interface import TaskPage
from mhimdist.tasks import Task


def page_of(task: Task) -> TaskPage:
    """The page that a task names.

    Raises:
        ReportError: it cannot be imported, or is none.
    """
    found = imported(task.page, f"the page of {task.name}", "Class", ReportError)
    if not (isinstance(found, type) and issubclass(found, TaskPage)):
        raise ReportError(
            f"the page of {task.name}: expected a class derived from mhimdist.pages.tasks.TaskPage, got "
            f"{found!r}"
        )
    page: TaskPage = found()
    return page
