"""From the little language of `language.py` to LLVM IR.

A function of one table of words becomes `define void @name(ptr %words)`. Locals live on the stack, where LLVM's first
pass takes them into registers; functions that are called are written out in place, arrays and numbers bound to their
arguments.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from nlmegen.structure.kernel.expressions import (
    TAG,
    TYPES,
    Array,
    Expressions,
    Scope,
    Value,
    Variable,
    unknown,
)

# doubles and integers never share memory: LLVM may keep one in a register while the other is written
ALIASES = """
!0 = !{!"numbers"}
!1 = !{!"float", !0, i64 0}
!2 = !{!"int", !0, i64 0}
!3 = !{!1, !1, i64 0}
!4 = !{!2, !2, i64 0}
"""


def translate(function: Callable[..., Any], name: str, count: int) -> str:
    """A function of a table of words as LLVM IR.

    Args:
        function: of one argument, written in the little language.
        name: of the LLVM function.
        count: words in the table.

    Raises:
        NotImplementedError: for what is not in the language, with the line.
    """
    writer = _Writer()
    writer.function(function, [Array("int", "%words", (Value("int", str(count)),))])
    body = "\n".join([*writer.locals, *writer.lines])
    declarations = "declare double @llvm.fabs.f64(double)\ndeclare i64 @llvm.abs.i64(i64, i1)\n"
    return f"{declarations}define void @{name}(ptr noalias %words) {{\n{body}\n  ret void\n}}\n{ALIASES}"


class _Writer(Expressions):
    """Statements."""

    def function(self, function: Any, arguments: Sequence[Any]) -> None:
        """Write a function out, its arguments bound."""
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        assert isinstance(tree, ast.FunctionDef)
        outer = getattr(self, "_scope", None)
        self._scope = Scope(function, self._name("end"))
        for parameter, argument in zip(tree.args.args, arguments, strict=True):
            if isinstance(argument, Value):
                local = self._variable(argument.kind)
                self._write(local, argument)
                argument = local
            self._scope.names[parameter.arg] = argument
        self._block(tree.body)
        self._label(self._scope.end)
        if outer is not None:
            self._scope = outer

    def _block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, s: ast.stmt) -> None:
        match s:
            case ast.Assign(targets=[target]):
                self._assign(target, self._expression(s.value))
            case ast.AugAssign():
                now = self._expression(_loaded(s.target))
                self._assign(s.target, self._arithmetic(s, s.op, now, self._expression(s.value)))
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.Expr(value=ast.Call()):
                self._call(s.value)  # type: ignore[arg-type]
            case ast.If():
                self._if(s)
            case ast.While(orelse=[]):
                again, inside, after = self._name("while"), self._name("do"), self._name("done")
                self._label(again)
                self._branch(self._truth(s.test), inside, after)
                self._loop(s.body, again, after)
                self.lines += [f"  br label %{again}", f"{after}:"]
            case ast.For(target=ast.Name(), iter=ast.Call(func=ast.Name(id="range")), orelse=[]):
                self._for(s)
            case ast.Break():
                self._jump(self._scope.loops[-1][1])
            case ast.Continue():
                self._jump(self._scope.loops[-1][0])
            case ast.Return(value=None):
                self._jump(self._scope.end)
            case _:
                raise unknown(s)

    def _loop(self, body: Sequence[ast.stmt], again: str, after: str) -> None:
        self._scope.loops.append((again, after))
        self._block(body)
        self._scope.loops.pop()

    def _if(self, s: ast.If) -> None:
        yes, no, after = self._name("then"), self._name("else"), self._name("after")
        self._branch(self._truth(s.test), yes, no)
        self._block(s.body)
        self.lines += [f"  br label %{after}", f"{no}:"]
        self._block(s.orelse)
        self._label(after)

    def _for(self, s: ast.For) -> None:
        assert isinstance(s.iter, ast.Call)
        assert isinstance(s.target, ast.Name)
        bounds = [self._expression(x) for x in s.iter.args]
        first = Value("int", "0") if len(bounds) == 1 else bounds[0]
        if len(bounds) > 2:
            raise unknown(s)
        end = bounds[-1]
        counter = self._variable("int")
        self._write(counter, first)
        again, inside, following, after = (self._name(x) for x in ("for", "do", "next", "done"))
        self._label(again)
        index = self._read(counter)
        self._branch(self._compare(ast.Lt(), index, end), inside, after)
        self._assign(s.target, index)
        self._loop(s.body, following, after)
        self._label(following)
        self._write(counter, Value("int", self._new(f"add i64 {self._read(counter).text}, 1")))
        self.lines += [f"  br label %{again}", f"{after}:"]

    def _assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name) if isinstance(value, Value):
                place = self._scope.names.get(name)
                if place is None:
                    place = self._scope.names[name] = self._variable(value.kind)
                if not isinstance(place, Variable) or (place.kind != value.kind and place.kind != "float"):
                    raise unknown(target)
                self._write(place, value)
            case ast.Name(id=name) if name not in self._scope.names:
                self._scope.names[name] = value
            case ast.Tuple(elts=places) if isinstance(value, tuple):
                for place, part in zip(places, value, strict=True):
                    self._assign(place, part)
            case ast.Subscript(value=ast.Name(id=name)):
                array = self._scope.names[name]
                pointer = self._element(array, target.slice)
                number = self._as(value, array.kind)
                self.lines.append(
                    f"  store {TYPES[array.kind]} {number.text}, ptr {pointer}, {TAG[array.kind]}"
                )
            case _:
                raise unknown(target)


def _loaded(target: ast.expr) -> ast.expr:
    """What `target += ...` adds to."""
    match target:
        case ast.Name(id=name):
            return ast.copy_location(ast.Name(name, ast.Load()), target)
        case ast.Subscript(value=value, slice=index):
            return ast.copy_location(ast.Subscript(value, index, ast.Load()), target)
    raise unknown(target)
