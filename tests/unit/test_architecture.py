"""The rules of the package that no single file can keep, read from the sources with `ast`.

Each rule yields what breaks it.  One test holds all files against every rule, one shows every rule what breaks it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "hotstart"

# A file imports from its own part or from a part further left.
ORDER = [
    "errors",
    "log",
    "request",
    "config",
    "text",
    "kernels",
    "cache",
    "layers",
    "models",
    "engine",
    "bench",
    "server",
    "cli",
]
# Files at the top that gather names of other parts: read as if they belonged to the part named here.
TOP_LEVEL = {"__init__": "cli", "__main__": "cli", "warmup": "cache", "vllm_plugin": "engine"}
# Kernels are usable by programs that are not ours, so they know nothing of configurations and requests.
KERNELS_MAY_IMPORT = {"errors", "log", "kernels"}
FORBIDDEN_IMPORTS = {"transformers", "pickle", "marshal", "shelve", "dill"}

NO_TORCH = [
    "errors.py",
    "log.py",
    "request.py",
    "text/*.py",
    "config/*.py",
    "kernels/gpus.py",
    "server/*.py",
    "engine/garbage.py",
    "engine/imports.py",
    "engine/memory.py",
    "engine/messages.py",
    "engine/outputs.py",
    "engine/phases.py",
    "engine/progress.py",
    "engine/download.py",
    "engine/holdings.py",
    "engine/limits.py",
    "engine/pending.py",
    "engine/plan.py",
    "engine/sequence.py",
    "engine/scheduler.py",
    "engine/predict.py",
    "engine/rehearsal.py",
    "engine/sizes.py",
    "engine/sizing.py",
    "cache/layout.py",
    "cache/pool.py",
    "cache/prefix.py",
]
# Process edges, where any failure must still give a request its answer or a start-up phase its name.
MAY_CATCH_EVERYTHING = {
    "engine/engine.py",
    "engine/startup.py",
    "engine/worker.py",
    "server/app.py",
    "kernels/gdn_backends.py",  # a library that fails at start-up, however it does, is refused or replaced
    "kernels/warm_up.py",
    "text/tokenizer.py",  # the tokenizers library raises Exception itself for a corrupt file
}

STEP_TYPES = {"StepInputs", "DecodeInputs", "PrefillInputs", "CacheTensors"}
STEP_NAMES = {"step", "decode", "prefill", "cache"}

Node = TypeVar("Node", bound=ast.AST)


@dataclass(frozen=True)
class Source:
    name: str  # relative to the package
    text: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=self.name)

    @property
    def folder(self) -> str:
        return self.name.split("/")[0]

    @property
    def module(self) -> str:
        return "hotstart." + self.name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    def nodes(self, *kinds: type[Node]) -> Iterator[Node]:
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


SOURCES = [
    Source(p.relative_to(PACKAGE).as_posix(), p.read_text(encoding="utf-8")) for p in sorted(PACKAGE.rglob("*.py"))
]
Problems = Iterator[tuple[int, str]]


def part_of(module: str) -> str:
    """`hotstart.engine.plan` -> `engine`."""
    part = module.split(".")[1] if "." in module else "__init__"
    return TOP_LEVEL.get(part, part)


def imports_of(source: Source) -> Problems:
    """Line and module of every import, those under TYPE_CHECKING too."""
    for node in source.nodes(ast.Import, ast.ImportFrom):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            whole = module == "hotstart"  # `from hotstart import log` names a part, not an attribute
            yield from ((node.lineno, f"{module}.{a.name}" if whole else module) for a in node.names)


def decorators_of(function: ast.FunctionDef) -> set[str]:
    names = (d.func if isinstance(d, ast.Call) else d for d in function.decorator_list)
    return {n.attr if isinstance(n, ast.Attribute) else getattr(n, "id", "") for n in names}


def arguments_of(function: ast.FunctionDef) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Every named argument with its default."""
    positional = function.args.posonlyargs + function.args.args
    no_defaults: list[ast.expr | None] = [None] * (len(positional) - len(function.args.defaults))
    yield from zip(positional, no_defaults + list(function.args.defaults), strict=True)
    yield from zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)


def is_none(node: ast.expr | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def imports_go_left(source: Source) -> Problems:
    part = part_of(source.module)
    for line, module in imports_of(source):
        if module.startswith("."):
            yield line, f"relative import of {module}"
        if module.split(".")[0] != "hotstart" or module == "hotstart.__version__":
            continue
        target = part_of(module)
        if target not in ORDER:
            yield line, f"{module} belongs to no part of the package"
        elif ORDER.index(target) > ORDER.index(part):
            yield line, f"imports {module}, but {part} stands left of {target}"
        elif part == "kernels" and target not in KERNELS_MAY_IMPORT:
            yield line, f"imports {module}, but kernels take of ours only {sorted(KERNELS_MAY_IMPORT)}"


def nothing_runs_what_a_file_chose(source: Source) -> Problems:
    """No pickle, no eval; and transformers is a reference for tests alone."""
    for line, module in imports_of(source):
        if module.split(".")[0] in FORBIDDEN_IMPORTS:
            yield line, f"imports {module}"
    for node in source.nodes(ast.Call):
        if ast.unparse(node.func) in {"eval", "exec", "torch.load"}:
            yield node.lineno, f"calls {ast.unparse(node.func)}"


def every_kernel_has_a_warmup(source: Source) -> Problems:
    if source.folder != "kernels":
        return
    warmed = set()
    for node in source.nodes(ast.Call):
        if ast.unparse(node.func) == "Launcher" and any(
            k.arg == "warmup" and not is_none(k.value) for k in node.keywords
        ):
            warmed |= {a.id for a in node.args if isinstance(a, ast.Name)}
    for function in source.nodes(ast.FunctionDef):
        if "kernel" in decorators_of(function) and function.name not in warmed:
            yield function.lineno, f"no Launcher({function.name}, warmup=...) in this file"


def step_data_is_never_optional(source: Source) -> Problems:
    """A branch for `no step data` is a second path for profiling and warm-up, and second paths drift."""
    if source.folder not in {"layers", "models", "kernels"}:
        return
    for function in source.nodes(ast.FunctionDef):
        for argument, default in arguments_of(function):
            annotation = ast.unparse(argument.annotation) if argument.annotation else ""
            words = set(re.findall(r"\w+", annotation))
            if argument.arg not in STEP_NAMES and not words & STEP_TYPES:
                continue
            if words & {"Optional", "None"} or default is not None:
                yield argument.lineno, f"{function.name}({argument.arg}) is optional"
    for node in source.nodes(ast.Compare):
        names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if names & STEP_NAMES and any(is_none(side) for side in [node.left, *node.comparators]):
            yield node.lineno, "compares step data with None"


def functions_beside_kernels_are_typed(source: Source) -> Problems:
    """mypy is loosened for kernel files, because Triton's parameters cannot be annotated; the rest stays strict."""
    if source.folder != "kernels":
        return
    for function in source.nodes(ast.FunctionDef):
        if decorators_of(function) & {"kernel", "jit"}:
            continue
        untyped = [a.arg for a, _ in arguments_of(function) if a.annotation is None and a.arg not in ("self", "cls")]
        if untyped or function.returns is None:
            yield function.lineno, f"{function.name} lacks types of {untyped or 'its result'}"


def no_broad_except(source: Source) -> Problems:
    for node in source.nodes(ast.ExceptHandler):
        caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"Exception"}
        if caught & {"Exception", "BaseException"} and source.name not in MAY_CATCH_EVERYTHING:
            yield node.lineno, "catches everything"


def nothing_is_left_for_later(source: Source) -> Problems:
    for number, line in enumerate(source.text.splitlines(), 1):
        if re.search(r"\b(TODO|FIXME|XXX)\b|\bNotImplemented", line):
            yield number, line.strip()
        if "# type: ignore" in line and not re.search(r"# type: ignore\[[\w, -]+\]  # \w+", line):
            yield number, "write `# type: ignore[code]  # reason`"
    if source.text.strip() and not ast.get_docstring(source.tree):
        yield 1, "has no docstring"


def public_names_exist(source: Source) -> Problems:
    bound: set[str] = set()
    public: list[str] = []
    statements = [s for node in source.tree.body for s in (node.body if isinstance(node, ast.If) else [node])]
    for node in statements:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
            bound |= names
            if names == {"__all__"}:
                public = [ast.literal_eval(item) for item in getattr(node.value, "elts", [])]
    for name in public:
        if name not in bound or public.count(name) > 1:
            yield 1, f"__all__ names {name!r}, which the file does not define once"


# A rule, and a file that breaks it: (rule, name, text).
RULES: list[tuple[Callable[[Source], Problems], str, str]] = [
    (imports_go_left, "cache/x.py", "from hotstart.engine import plan"),
    (imports_go_left, "kernels/x.py", "from hotstart.request import Request"),
    (imports_go_left, "layers/x.py", "from . import y"),
    (nothing_runs_what_a_file_chose, "models/x.py", "import torch\ntorch.load('x')"),
    (nothing_runs_what_a_file_chose, "text/x.py", "from transformers import AutoTokenizer"),
    (every_kernel_has_a_warmup, "kernels/x.py", "@kernel\ndef f(x): ...\n_launch = Launcher(f, warmup=None)"),
    (step_data_is_never_optional, "layers/x.py", "def forward(self, x, step: StepInputs | None): ..."),
    (step_data_is_never_optional, "kernels/x.py", "def f(x, decode=0): ..."),
    (step_data_is_never_optional, "models/x.py", "def f(cache):\n    return 1 if cache is None else 2"),
    (functions_beside_kernels_are_typed, "kernels/x.py", "def f(x) -> None: ..."),
    (no_broad_except, "cache/x.py", "try: ...\nexcept (ValueError, Exception): ..."),
    (no_broad_except, "cache/x.py", "try: ...\nexcept: ..."),
    (nothing_is_left_for_later, "cache/x.py", '"""X."""\nx = 1  # TODO: later'),
    (nothing_is_left_for_later, "cache/x.py", '"""X."""\nx: int = ""  # type: ignore'),
    (public_names_exist, "cache/x.py", "__all__ = ['f']\ndef g():\n    def f(): ..."),
]


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in RULES), ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Callable[[Source], Problems]) -> None:
    broken = [f"src/hotstart/{s.name}:{line}: {what}" for s in SOURCES for line, what in rule(s)]
    assert not broken, "\n" + "\n".join(broken)


@pytest.mark.parametrize(("rule", "name", "text"), RULES, ids=[f"{rule.__name__}-{name}" for rule, name, _ in RULES])
def test_the_rule_sees_what_breaks_it(rule: Callable[[Source], Problems], name: str, text: str) -> None:
    assert list(rule(Source(name, text)))


def test_marked_files_need_no_torch() -> None:
    names = {path.relative_to(PACKAGE).as_posix() for pattern in NO_TORCH for path in PACKAGE.glob(pattern)}
    imports = [f"import {source.module}" for source in SOURCES if source.name in names]
    check = "import sys\nheavy = {'torch', 'triton', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    program = "\n".join(["import hotstart", *imports, check])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{program}\n{done.stderr}"


def test_long_files_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A smell to look at, not a failure."""
    smells = []
    for source in SOURCES:
        lines, limit = len(source.text.splitlines()), 400 if source.folder == "kernels" else 300
        if lines > limit:
            smells.append(f"{source.name}: {lines} lines, over {limit}")
        for function in source.nodes(ast.FunctionDef):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > 60:
                smells.append(f"{source.name}:{function.lineno}: {function.name} has {length} lines, over 60")
    with capsys.disabled():
        print("".join(f"\n  long: {smell}" for smell in smells), end="")
