"""The rule for asyncio tasks: made in a TaskGroup, or in a module of `MAKERS`, with a name, and kept.

A task in a TaskGroup ends with its block, and its exception reaches the block. Any other task needs an owner that keeps
a reference (the loop keeps a weak one only: a task without a reference may be collected while it runs), awaits or
cancels it, and retrieves its exception. Each entry of `MAKERS` names that owner.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.project.test_project import PACKAGE, SOURCES

#: Module -> the owner of the tasks it makes, and when they end. A module that makes none any more is removed here.
MAKERS = {
    "server.py": "Gateway keeps the tasks of reloads and background jobs; `stop` cancels them",
    "workers/supervisor.py": "Supervisor keeps the tasks of reloads, drain and status; `stop` cancels them",
    "workers/pool.py": "WorkerPool keeps a task per place and per worker; `end` cancels and awaits them",
    "workers/limits.py": "GatewayLimits keeps the tasks of health checks and of waits for bytes; `close` cancels them",
    "workers/worker.py": "Worker keeps the tasks of messages and beats; `serve` cancels them at its end",
    "downstream/handshakes.py": "Handshakes keeps the tasks of TLS handshakes; `close` cancels them",
    "ops/api.py": "Api keeps the task that records the history, and cancels it when the application is cleaned up",
    "ops/events.py": "EventStream keeps the task that makes events while there are readers; `close` cancels it",
    "upstream/request.py": "UpstreamRequest keeps the task that sends the body, and `stop` cancels it",
    "actions/mirror.py": "Mirror keeps the tasks of its copies; they outlive the exchange, and `close` ends them",
    "actions/split.py": "`_wait_first` makes one task per wait and cancels those that are left before it returns",
    "express/lane.py": "ExpressLane keeps the tasks of exchanges that are cancelled; each ends at its first wait",
    "storage/bucket.py": "the upload keeps the task of its commit, and awaits it also when it is cancelled",
    "storage/object.py": "the object upload keeps the task that sends its parts, and its `commit` awaits it",
}
_MAKING = {"create_task", "ensure_future", "run_coroutine_threadsafe", "Task", "eager_task_factory"}


def tasks_in(tree: ast.AST) -> Iterator[ast.Call]:
    """Yield the calls that make a task outside a TaskGroup. A TaskGroup is held in a variable named `group`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Attribute) and node.func.attr in _MAKING:
            owner = ast.unparse(node.func.value)
            if node.func.attr != "create_task" or owner.rpartition(".")[2].lstrip("_") != "group":
                yield node
        elif isinstance(node.func, ast.Name) and node.func.id in _MAKING:
            yield node


def makers() -> set[str]:
    """Return the modules of the gateway that make tasks outside a TaskGroup."""
    return {str(path.relative_to(PACKAGE)) for path in SOURCES if any(tasks_in(ast.parse(path.read_text())))}


def test_only_the_listed_modules_make_tasks_outside_a_task_group() -> None:
    found = makers()
    assert found - MAKERS.keys() == set(), "use a TaskGroup, or add the module to MAKERS with the owner of its tasks"
    assert MAKERS.keys() - found == set(), "these make no task any more: remove them from MAKERS"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tasks_are_kept_and_named(path: Path) -> None:
    tree = ast.parse(path.read_text())
    discarded = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for call in tasks_in(tree):
        where = f"{path.relative_to(PACKAGE)}:{call.lineno}: {ast.unparse(call)}"
        assert id(call) not in discarded, f"{where}: no reference is kept"
        if isinstance(call.func, ast.Attribute) and call.func.attr == "create_task":
            assert any(keyword.arg == "name" for keyword in call.keywords), f"{where}: give it a name"


@pytest.mark.parametrize(
    ("code", "is_found"),
    [
        ("asyncio.create_task(work())", True),
        ("asyncio.get_running_loop().create_task(work())", True),
        ("self._loop.create_task(work())", True),
        ("asyncio.ensure_future(work())", True),
        ("create_task(work())", True),
        ("asyncio.run_coroutine_threadsafe(work(), loop)", True),
        ("group.create_task(work())", False),
        ("self._group.create_task(work())", False),
    ],
)
def test_every_way_to_make_a_task_is_found(code: str, is_found: bool) -> None:
    assert bool(list(tasks_in(ast.parse(code)))) is is_found
