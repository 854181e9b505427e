"""What each key means: the texts below the fields of the config classes, read from their source when somebody asks.

Pydantic can attach them when a class is made (``use_attribute_docstrings``), which costs every process of a run, and each that it
starts, a third of the time that all config classes take to be made.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap

from pydantic import BaseModel


@functools.cache
def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Field → the text below it, of a class and those that it inherits from."""
    found: dict[str, str] = {}
    for part in reversed(model.__mro__):
        if issubclass(part, BaseModel) and part is not BaseModel:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(part))).body
            assert isinstance(tree, ast.ClassDef)
            for field, below in zip(tree.body, tree.body[1:], strict=False):
                match field, below:
                    case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                        found[name] = inspect.cleandoc(text)
    return found
