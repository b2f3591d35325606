"""From the name of a task in a study to its class, and to the digest of its code."""

import hashlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from node.tasks.base import Setup, Task, TaskError

BUILTIN = {
    "image": "node.tasks.image:ImageTask",
    "tabular": "node.tasks.tabular:TabularTask",
    "synthetic": "node.tasks.synthetic:SyntheticTask",
    "flower": "node.tasks.flower:FlowerTask",
    "flare": "node.tasks.flare:FlareTask",
}
HOSTS = {"flower": "client", "flare": "script"}
"""Built-in tasks that run code of the user's, and the option that names it, as ``module:name`` or ``module``."""

MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
CODE = rf"{MODULE}:[A-Za-z_]\w*"
"""A pattern for what names code of the user's."""

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_METHODS = ("check_options", "statistics_spec", "statistics", "initial", "train", "evaluate")


def load_task_class(name: str) -> type[Task]:
    """The class of ``image``, ``tabular``, ``synthetic`` or ``module:Class``.

    A user's module is imported here, and so run: do it only where that code may run.
    Raises TaskError where there is no such module or class, or where it lacks a method.
    """
    module_name, class_name = _split(name)
    if name not in BUILTIN:
        task_source(name)  # whether there is one, before any of it runs
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own code raises while it is imported
        raise TaskError(f"task {name}: importing {module_name} failed: {_one_line(error)}") from error
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise TaskError(f"task {name}: expected a class {class_name} in {module_name}, came none")
    lacking = [method for method in _METHODS if not _has(cls, method)]
    if lacking:
        raise TaskError(f"task {name}: expected a class with the methods of a task, it lacks {', '.join(lacking)}")
    return cls


def load_task(name: str, setup: Setup) -> Task:
    """The task of this party, its data loaded. Raises TaskError whatever the task's own code raises."""
    cls = load_task_class(name)
    try:
        task = cls(setup)
    except TaskError:
        raise
    except Exception as error:
        # Only the type: the text of a stranger's exception may quote a patient's values.
        raise TaskError(f"{setup.party}: task {name}: loading the data failed with {type(error).__name__}") from error
    for attribute in ("examples", "parameters"):
        value = getattr(task, attribute, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise TaskError(
                f"{setup.party}: task {name}: expected {attribute} to be a whole number above 0, came "
                + (str(value) if isinstance(value, int) else type(value).__name__)
            )
    return task


def task_source(name: str, options: Mapping[str, Any] = _NO_OPTIONS) -> Path:
    """What holds a task's source: its module's file, or the folder of the top-level package that it lies in.

    Of a built-in task that runs code of the user's (by its ``options``): where that code lies.
    Found without importing it. Raises TaskError where there is none.
    """
    name = users_code(name, options) or name
    module, _ = _split(name)
    parts = module.split(".")
    spec = _spec(parts[0], None)
    folders = spec and spec.submodule_search_locations
    package = folders[0] if folders else None
    for depth in range(2, len(parts) + 1):
        spec = _spec(".".join(parts[:depth]), folders) if folders else None
        folders = spec and spec.submodule_search_locations
    if spec is None or not (spec.origin or "").endswith(".py"):
        raise TaskError(f"task {name}: expected a Python module {module}, none is installed or on PYTHONPATH")
    return Path(package or spec.origin or "")


def task_digest(name: str, options: Mapping[str, Any] = _NO_OPTIONS) -> str:
    """SHA-256, in hex, of the source that a task consists of; found without importing it.

    For a built-in task: ``node/tasks`` and the modules that it reads data and options with. For a module that
    lies in a package: every .py file of that (top-level) package. Otherwise: the module's own file.
    For a built-in task that runs code of the user's: both.
    """
    digest = hashlib.sha256()
    for root, files in _sources(name, options):
        for relative, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
            text = file.read_bytes()
            digest.update(f"{relative}\0{len(text)}\0".encode() + text)
    return digest.hexdigest()


def _sources(name: str, options: Mapping[str, Any]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder, and the files below it that count."""
    if name in BUILTIN:
        root = Path(__file__).parent.parent
        yield root, [*(root / "tasks").rglob("*.py"), root / "data.py", root / "images.py", root / "settings.py"]
    if name not in BUILTIN or name in HOSTS:
        source = task_source(name, options)
        yield (source, list(source.rglob("*.py"))) if source.is_dir() else (source.parent, [source])


def users_code(name: str, options: Mapping[str, Any]) -> str | None:
    """What a built-in task runs of the user's, as ``module:name``; None: nothing."""
    if name not in HOSTS:
        return None
    code = str(options.get(HOSTS[name], ""))
    return code if ":" in code else f"{code}:main"


def _split(name: str) -> tuple[str, str]:
    module, _, cls = BUILTIN.get(name, name).partition(":")
    if not cls.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise TaskError(f'task: expected {", ".join(BUILTIN)} or "module:Class", came "{name}"')
    return module, cls


def _spec(module: str, path: list[str] | None) -> ModuleSpec | None:
    # importlib.util.find_spec would import, and so run, the parent packages.
    importlib.invalidate_caches()
    for finder in sys.meta_path:
        if spec := finder.find_spec(module, path):
            return spec
    return None


def _has(cls: type, method: str) -> bool:
    found = getattr(cls, method, None)
    return callable(found) and not getattr(found, "__isabstractmethod__", False)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
