"""What the package says to its users when something is wrong: every text, from the source.

Rules of this file: modules are read, not imported. What is put into a text at run time is "…". A
text is what is given to an exception, a warning or the log, directly, by a name that is assigned
beside it, or from one of the tables that are named here.
"""

from __future__ import annotations

import ast
import itertools
import re
from typing import TYPE_CHECKING

from support.pages import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PACKAGE = ROOT / "trio_uring"
GAP = "…"
EXCEPTION = re.compile(r"(Error|Exception|gaierror|Exit|TooLarge|NotFound|Misuse|_Failed|_in_use)$")
IN_C = re.compile(r'PyErr_(?:SetString|Format)\(\s*(\w+),\s*((?:"[^"]*"\s*)+)')
LOGS = {"warning", "error", "exception", "info", "warn"}

TABLES = {"_REASONS", "_NO_MEMORY", "_TOO_OLD"}  # dicts of texts
KEYWORDS = {"refusal"}  # arguments that are texts

Scope = dict[str, list[ast.expr]]
Said = tuple[ast.expr, list[Scope], str]


def _assigned(body: list[ast.stmt]) -> Scope:
    """What is assigned to each name, anywhere in these statements."""
    found: Scope = {}
    for node in itertools.chain.from_iterable(ast.walk(each) for each in body):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


def _texts(node: ast.expr, scopes: list[Scope], depth: int = 0) -> list[str]:
    """The texts that an expression may be; none: it is not one of ours."""
    if depth > 4:
        return []
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.JoinedStr):
        parts = [_texts(each, scopes, depth + 1) or [GAP] for each in node.values]
        return ["".join(each) for each in itertools.product(*parts)]
    if isinstance(node, ast.FormattedValue):
        # A name that is given to the function is no text of ours, whatever the module calls so.
        named = isinstance(node.value, ast.Name)
        return _texts(node.value, scopes[:-2], depth + 1) if named else []
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = [_texts(side, scopes, depth + 1) or [GAP] for side in (node.left, node.right)]
        return ["".join(pair) for pair in itertools.product(*sides)]
    if isinstance(node, ast.IfExp):
        return [text for each in (node.body, node.orelse) for text in _texts(each, scopes, depth)]
    if isinstance(node, ast.Name):
        for scope in scopes:
            if node.id in scope:
                return [t for each in scope[node.id] for t in _texts(each, scopes, depth + 1)]
    return []


def _name(call: ast.Call) -> str:
    func = call.func
    return func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")


def _constants(trees: Iterable[ast.Module]) -> Scope:
    """The constants of all modules: some of them are imported."""
    found: Scope = {}
    for tree in trees:
        scope = _assigned([each for each in tree.body if isinstance(each, ast.Assign)])
        found.update({name: values for name, values in scope.items() if name.isupper()})
    return found


def _calls(tree: ast.Module, constants: Scope) -> Iterator[Said]:
    """What may be a text, with the names around it, and what says it."""
    module = _assigned([each for each in tree.body if isinstance(each, ast.Assign)])
    for table in TABLES & module.keys():
        [values] = module[table]
        yield from ((each, [], table) for each in getattr(values, "values", []))

    def visit(node: ast.AST, scopes: list[Scope], owner: str) -> Iterator[Said]:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            scopes = [_assigned(node.body), *scopes]
        elif isinstance(node, ast.ClassDef):
            owner = node.name
        elif isinstance(node, ast.Call):
            name = _name(node)
            logs = name in LOGS and isinstance(node.func, ast.Attribute)
            if logs or EXCEPTION.search(name) or (name == "__init__" and EXCEPTION.search(owner)):
                yield from ((each, scopes, name) for each in node.args)
            yield from ((k.value, scopes, name) for k in node.keywords if k.arg in KEYWORDS)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, scopes, owner)

    yield from visit(tree, [module, constants], "")


def _plain(text: str) -> str:
    """The text of a heading: one line, with one gap where something is put in."""
    text = re.sub(r"%(\.\d+)?[\w]+|%[RUS]", GAP, text)
    return re.sub(r"\s+", " ", re.sub(rf"{GAP}+", GAP, text)).strip()


def messages() -> dict[str, set[str]]:
    """Each text that has words of ours, and where it is: `module: what says it`."""
    found: dict[str, set[str]] = {}
    trees = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
    constants = _constants(trees.values())
    for path, tree in trees.items():
        module = path.relative_to(PACKAGE).with_suffix("").as_posix()
        for said, scopes, kind in _calls(tree, constants):
            for text in _texts(said, scopes):
                found.setdefault(_plain(text), set()).add(f"{module}: {kind}")
    for path in sorted(PACKAGE.glob("_c/**/*.[ch]")):
        for kind, said in IN_C.findall(path.read_text()):
            text = "".join(re.findall(r'"([^"]*)"', said))
            found.setdefault(_plain(text), set()).add(f"_c/{path.name}: {kind}")
    return {text: where for text, where in found.items() if re.search(r"\w{4,}", text)}
