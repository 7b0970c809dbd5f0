"""What Triton compiles wrongly, and our kernels therefore do not contain."""

import ast
from pathlib import Path

import pytest

import hotstart.kernels

FILES = sorted(Path(hotstart.kernels.__file__).parent.glob("*.py"))


def calls(tree, name):
    """Calls of tl.NAME within a piece of code."""
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute))
    return [node for node in found if node.func.attr == name]


def names(tree):
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def transposed_products(source):
    """Lines where an operand of a product is the transpose of a product: wrong on Hopper before Triton 3.7.1."""
    lines = []
    for function in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)):
        assignments = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.AugAssign)]
        products: set[str] = set()
        while True:
            before = len(products)
            for node in assignments:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                # A load from memory is a fresh tensor, whatever its address was made of.
                fresh = isinstance(node.value, ast.Call) and bool(calls(ast.Expr(node.value), "load")[:1])
                if calls(node.value, "dot") or (names(node.value) & products and not fresh):
                    products.update(*(names(target) for target in targets))
            if len(products) == before:
                break
        for product in calls(function, "dot"):
            for operand in product.args[:2]:
                turned = [*calls(operand, "trans"), *calls(operand, "permute")]
                if any(calls(t, "dot") or names(t) & products for t in turned):
                    lines.append(product.lineno)
    return lines


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_product_of_a_transposed_accumulator(file):
    assert transposed_products(file.read_text()) == []


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("s = tl.dot(a, b)\n    c = tl.dot(tl.trans(s), b)", True),
        ("s = tl.dot(a, b).to(tl.bfloat16)\n    t = s * 2\n    c = tl.dot(a, tl.permute(t, (1, 0)))", True),
        ("c = tl.dot(tl.trans(tl.dot(a, b)), b)", True),
        ("s = tl.dot(a, b)\n    c = tl.dot(s, tl.trans(b))", False),
        ("s = tl.dot(a, b)\n    tl.store(p, tl.trans(s))", False),
    ],
)
def test_the_search_finds_them(body, wrong):
    assert bool(transposed_products(f"def kernel(a, b, p):\n    {body}\n")) == wrong
