"""From expression graphs to LLVM IR on vectors of eight rows.

Every quantity of a page is a vector `<8 x double>`, one lane a row. A module is text; `machine.py` compiles it.

A function takes pointers to rows of vectors (64-byte aligned, row c at offset 64 c bytes), so the leaf ("state", 2) of
a graph is a load of row 2 from the pointer of the states. The weights of a page's networks are shared by all rows:
plain doubles, broadcast when they are read.

    module = Module()
    with module.define("rates", ("Y", "P", "W", "F", "T", "K")) as e:
        for c, rate in enumerate(e.expressions(components.rates, leaves)):
            e.store("%K", c, rate)
    module.text()
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from nlmegen.structure.derive import topological
from nlmegen.structure.kernel import functions
from nlmegen.structure.primitive import primitive
from nlmegen.structure.trace import Symbol

LANES = 8
VECTOR = f"<{LANES} x double>"
INTEGERS = f"<{LANES} x i64>"
MASK = f"<{LANES} x i1>"

# Contraction to fused multiply-add and the sign of zero are free; no other licence is given, so that NaN and infinity
# keep their meaning and a page gives the same bits whatever is compiled beside it.
FLAGS = "contract nsz"

BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul"}
LARGEST_PRODUCT = 16
"""Largest power that is written as a product."""
INTRINSICS = {"sqrt": "sqrt", "sin": "sin", "cos": "cos"}
COMPARISONS = {"lt": "olt", "le": "ole", "eq": "oeq"}

Leaf = Callable[["Emitter", int], str]
"""How a leaf of one kind is read: `leaf(emitter, index) -> the name of its vector`."""


class Emitter:
    """Lines of one function; each method that computes returns the name of the vector that it computed."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.lines: list[str] = []
        self._count = 0

    def new(self, instruction: str) -> str:
        """The value of one LLVM instruction."""
        self._count += 1
        name = f"%v{self._count}"
        self.lines.append(f"  {name} = {instruction}")
        return name

    def constant(self, x: float) -> str:
        """The vector x, x, ..., exactly."""
        bits = struct.unpack("<Q", struct.pack("<d", x))[0]
        return f"<{', '.join([f'double 0x{bits:016X}'] * LANES)}>"

    def integer(self, x: int) -> str:
        """The vector of 64-bit integers x, x, ..."""
        return f"<{', '.join([f'i64 {x}'] * LANES)}>"

    def add(self, a: str, b: str) -> str:
        """a + b."""
        return self.new(f"fadd {FLAGS} {VECTOR} {a}, {b}")

    def sub(self, a: str, b: str) -> str:
        """a - b."""
        return self.new(f"fsub {FLAGS} {VECTOR} {a}, {b}")

    def mul(self, a: str, b: str) -> str:
        """a b."""
        return self.new(f"fmul {FLAGS} {VECTOR} {a}, {b}")

    def div(self, a: str, b: str) -> str:
        """a / b."""
        return self.new(f"fdiv {FLAGS} {VECTOR} {a}, {b}")

    def strict(self, name: str, a: str, b: str) -> str:
        """An operation (fadd, fsub, fmul, fdiv) rounded as it stands: where the rounding error itself is wanted."""
        return self.new(f"{name} {VECTOR} {a}, {b}")

    def negative(self, a: str) -> str:
        """-a."""
        return self.new(f"fneg {VECTOR} {a}")

    def fma(self, a: str, b: str, c: str) -> str:
        """a b + c, rounded once."""
        return self.intrinsic("fma", a, b, c)

    def intrinsic(self, name: str, *args: str) -> str:
        """An intrinsic of LLVM on vectors: fma, fabs, sqrt, sin, cos."""
        self.module.intrinsics.add((name, len(args)))
        given = ", ".join(f"{VECTOR} {a}" for a in args)
        return self.new(f"call {VECTOR} @llvm.{name}.v{LANES}f64({given})")

    def call(self, name: str, *args: str) -> str:
        """One of the functions of `functions.py`: exp, log, pow, ..."""
        self.module.need(name)
        return self.new(f"call {VECTOR} @v{name}({', '.join(f'{VECTOR} {a}' for a in args)})")

    def invoke(self, name: str, *args: str) -> None:
        """Call a function of the module that returns nothing; args with their types, as in `ptr %Y`."""
        self.lines.append(f"  call void @{name}({', '.join(args)})")

    def compare(self, kind: str, a: str, b: str) -> str:
        """A mask: LLVM's fcmp, kind `olt`, `ole`, `oeq`, `uno`, ..."""
        return self.new(f"fcmp {kind} {VECTOR} {a}, {b}")

    def both(self, a: str, b: str) -> str:
        """The mask a and b."""
        return self.new(f"and {MASK} {a}, {b}")

    def either(self, a: str, b: str) -> str:
        """The mask a or b."""
        return self.new(f"or {MASK} {a}, {b}")

    def opposite(self, a: str) -> str:
        """The mask not a."""
        return self.new(f"xor {MASK} {a}, <{', '.join(['i1 true'] * LANES)}>")

    def select(self, mask: str, a: str, b: str) -> str:
        """A where the mask holds, else b."""
        return self.new(f"select {MASK} {mask}, {VECTOR} {a}, {VECTOR} {b}")

    def absolute(self, a: str) -> str:
        """|a|."""
        return self.intrinsic("fabs", a)

    def maximum(self, a: str, b: str) -> str:
        """The larger of two; b where a is NaN."""
        return self.select(self.compare("ogt", a, b), a, b)

    def bits(self, a: str) -> str:
        """The 64 bits of each number, as integers."""
        return self.new(f"bitcast {VECTOR} {a} to {INTEGERS}")

    def number(self, a: str) -> str:
        """The numbers that have these 64 bits."""
        return self.new(f"bitcast {INTEGERS} {a} to {VECTOR}")

    def rounded(self, a: str) -> str:
        """Integers as numbers."""
        return self.new(f"sitofp {INTEGERS} {a} to {VECTOR}")

    def whole(self, name: str, a: str, b: str) -> str:
        """An operation on 64-bit integers: add, sub, shl, ashr, and."""
        return self.new(f"{name} {INTEGERS} {a}, {b}")

    def row(self, pointer: str, index: int | str) -> str:
        """Pointer to row `index` (a number or the name of an i64)."""
        return self.new(f"getelementptr {VECTOR}, ptr {pointer}, i64 {index}")

    def load(self, pointer: str, index: int | str) -> str:
        """Row `index` of a pointer."""
        return self.new(f"load {VECTOR}, ptr {self.row(pointer, index)}, align 64")

    def store(self, pointer: str, index: int | str, value: str) -> None:
        """Write row `index` of a pointer."""
        self.lines.append(f"  store {VECTOR} {value}, ptr {self.row(pointer, index)}, align 64")

    def broadcast(self, pointer: str, index: int) -> str:
        """The shared double `index` of a pointer, in all lanes."""
        place = self.new(f"getelementptr double, ptr {pointer}, i64 {index}")
        scalar = self.new(f"load double, ptr {place}")
        single = self.new(f"insertelement {VECTOR} poison, double {scalar}, i32 0")
        return self.new(f"shufflevector {VECTOR} {single}, {VECTOR} poison, <{LANES} x i32> zeroinitializer")

    @contextmanager
    def loop(self, count: int) -> Iterator[str]:
        """Repeat the lines written inside for index 0, ..., count - 1; yields the name of the index."""
        self._count += 1
        k = self._count
        self.lines += [f"  br label %before{k}", f"before{k}:", f"  br label %loop{k}", f"loop{k}:"]
        self.lines.append(f"  %index{k} = phi i64 [0, %before{k}], [%next{k}, %loop{k}]")
        yield f"%index{k}"
        self.lines += [f"  %next{k} = add i64 %index{k}, 1", f"  %more{k} = icmp ult i64 %next{k}, {count}"]
        self.lines += [f"  br i1 %more{k}, label %loop{k}, label %after{k}", f"after{k}:"]

    def variable(self, value: str) -> str:
        """A vector that changes, with its first value; made at the beginning of a function, before any loop."""
        place = self.new(f"alloca {VECTOR}, align 64")
        self.write(place, value)
        return place

    def read(self, place: str) -> str:
        """The present value of a variable."""
        return self.new(f"load {VECTOR}, ptr {place}, align 64")

    def write(self, place: str, value: str) -> None:
        """Change a variable."""
        self.lines.append(f"  store {VECTOR} {value}, ptr {place}, align 64")

    @contextmanager
    def repeat(self, count: str) -> Iterator[str]:
        """Repeat the lines written inside for index 0, ..., count - 1, count the name of an i64 (0 is no loop)."""
        self._count += 1
        k = self._count
        self.lines += [f"  %counter{k} = alloca i64", f"  store i64 0, ptr %counter{k}"]
        self.lines += [f"  br label %again{k}", f"again{k}:", f"  %index{k} = load i64, ptr %counter{k}"]
        self.lines.append(f"  %more{k} = icmp slt i64 %index{k}, {count}")
        self.lines += [f"  br i1 %more{k}, label %inside{k}, label %after{k}", f"inside{k}:"]
        yield f"%index{k}"
        self.lines += [f"  %next{k} = add i64 %index{k}, 1", f"  store i64 %next{k}, ptr %counter{k}"]
        self.lines += [f"  br label %again{k}", f"after{k}:"]

    @contextmanager
    def if_any(self, mask: str) -> Iterator[None]:
        """Run the lines written inside where the mask holds in any lane."""
        self._count += 1
        k = self._count
        self.lines.append(f"  %bits{k} = bitcast {MASK} {mask} to i{LANES}")
        self.lines.append(f"  %any{k} = icmp ne i{LANES} %bits{k}, 0")
        self.lines += [f"  br i1 %any{k}, label %some{k}, label %none{k}", f"some{k}:"]
        yield
        self.lines += [f"  br label %none{k}", f"none{k}:"]

    def expressions(
        self, outputs: Sequence[Symbol], leaves: Mapping[str, Leaf], known: dict[int, str] | None = None
    ) -> list[str]:
        """Values of a graph.

        Args:
            outputs: symbols of one graph.
            leaves: for each kind of leaf that may occur, how it is read.
            known: vectors of symbols (by their numbers) that are there already; the new ones are added.

        Returns:
            The name of the vector of each output.
        """
        outputs = primitive(outputs)
        at: dict[int, str] = {} if known is None else known
        for x in topological(outputs):
            if x.number not in at:
                at[x.number] = self._operation(x, at, leaves)
        return [at[x.number] for x in outputs]

    def _operation(self, x: Symbol, at: Mapping[int, str], leaves: Mapping[str, Leaf]) -> str:
        if x.op == "const":
            return self.constant(float(x.args[0]))
        if x.op == "leaf":
            kind, index = x.args
            return leaves[kind](self, index)
        given = [at[a.number] for a in x.args]
        if x.op == "pow" and x.args[1].op == "const":
            exponent = float(x.args[1].args[0])
            if (2 * exponent).is_integer() and abs(exponent) <= LARGEST_PRODUCT:
                return self._product(given[0], exponent)
        if x.op in BINARY:
            return self.new(f"{BINARY[x.op]} {FLAGS} {VECTOR} {given[0]}, {given[1]}")
        if x.op == "reciprocal":
            return self.div(self.constant(1.0), given[0])
        if x.op in INTRINSICS:
            return self.intrinsic(INTRINSICS[x.op], *given)
        if x.op in COMPARISONS:
            return self.compare(COMPARISONS[x.op], *given)
        if x.op in functions.WRITERS:
            return self.call(x.op, *given)
        match x.op:
            case "where":
                return self.select(*given)
            case "and":
                return self.both(*given)
            case "or":
                return self.either(*given)
            case "not":
                return self.opposite(*given)
        raise NotImplementedError(f"the compiler has no instruction for {x.op!r}")

    def _product(self, a: str, exponent: float) -> str:
        """a to a whole or half power, by multiplications and at most one square root."""
        factors, square, whole = [], a, int(abs(exponent))
        if abs(exponent) != whole:
            factors.append(self.intrinsic("sqrt", a))
        while whole:
            if whole & 1:
                factors.append(square)
            whole >>= 1
            if whole:
                square = self.mul(square, square)
        result = factors[0] if factors else self.constant(1.0)
        for factor in factors[1:]:
            result = self.mul(result, factor)
        return self.div(self.constant(1.0), result) if exponent < 0 else result


class Module:
    """Functions of one compiled page, as LLVM IR."""

    def __init__(self) -> None:
        self.intrinsics: set[tuple[str, int]] = set()
        self._functions: list[str] = []
        self._needed: set[str] = set()

    def need(self, name: str) -> None:
        """Have one of the functions of `functions.py` in the module."""
        if name not in self._needed:
            self._needed.add(name)
            inside = Emitter(self)
            arguments = [f"%x{k}" for k in range(functions.ARGUMENTS[name])]
            result = functions.WRITERS[name](inside, *arguments)
            given = ", ".join(f"{VECTOR} {a}" for a in arguments)
            body = "\n".join([*inside.lines, f"  ret {VECTOR} {result}"])
            self._functions.append(f"define internal {VECTOR} @v{name}({given}) {{\n{body}\n}}\n")

    @contextmanager
    def define(self, name: str, parameters: Sequence[str], internal: bool = False) -> Iterator[Emitter]:
        """A function that returns nothing; the lines written inside are its body.

        Args:
            name: its name.
            parameters: names of pointers that do not overlap, seen inside as %name; a name that begins with a small
                letter is a vector and not a pointer.
            internal: not called from outside; kept as one function (never inlined), so that every caller gets the same
                bits.
        """
        inside = Emitter(self)
        yield inside
        given = ", ".join(f"{VECTOR} %{p}" if p[0].islower() else f"ptr noalias %{p}" for p in parameters)
        linkage, attributes = ("internal ", " noinline") if internal else ("", "")
        body = "\n".join([*inside.lines, "  ret void"])
        self._functions.append(f"define {linkage}void @{name}({given}){attributes} {{\n{body}\n}}\n")

    def text(self) -> str:
        """The module."""
        declarations = [
            f"declare {VECTOR} @llvm.{name}.v{LANES}f64({', '.join([VECTOR] * count)})"
            for name, count in sorted(self.intrinsics)
        ]
        return "\n".join([*declarations, *self._functions])
