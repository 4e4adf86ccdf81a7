"""From LLVM IR to functions that can be called: optimised, compiled for this processor, kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from nlmegen.structure.kernel.store import Store
from nlmegen.structure.kernel.translate import translate

OPTIMIZATION = 2


def _read() -> tuple[str, ...]:
    return tuple(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py")))


SOURCES = _read()
"""The text of this package, as it was when it was imported."""


class Code:
    """Machine code in memory.

    Args:
        objects: an object file.
        names: functions that are wanted.

    Attributes:
        address: of each function.
    """

    def __init__(self, objects: bytes, names: Sequence[str]) -> None:
        # the engine owns the code: it must live as long as the addresses are used
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(objects))
        self._engine.finalize_object()
        self.address = {name: self._engine.get_function_address(name) for name in names}


def compiled(
    key: str, names: Sequence[str], text: Callable[[], str], store: Store, vectors: bool = True
) -> Code:
    """Functions of a module, from the store or else compiled and stored.

    Args:
        key: what the module's text depends on; processor and compiler are added.
        names: functions of the module that are wanted; the others are private to it.
        text: writes the module as LLVM IR; called when it is not in the store.
        store: where object code is kept.
        vectors: whether loops are worth unrolling and vectorising; it takes most of the time.

    Raises:
        RuntimeError: when the module is not valid or refers to functions outside it.
    """
    name = hashlib.sha256("\n".join((key, *_platform())).encode()).hexdigest()
    objects = store.get(name)
    if objects is None:
        objects = _compile(text(), names, vectors)
        store.put(name, objects)
    return Code(objects, names)


@lru_cache(maxsize=1)
def _platform() -> tuple[str, ...]:
    """What object code depends on besides its source."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    version = ".".join(str(x) for x in llvm.llvm_version_info)
    triple = llvm.get_process_triple()
    try:
        features = llvm.get_host_cpu_features().flatten()
    except RuntimeError:  # not known for every kind of processor
        features = ""
    if triple.startswith("x86_64"):
        # vectors of 512 bits are used where there are any: eight lanes in one register
        features += ",-prefer-256-bit"
    return triple, llvm.get_host_cpu_name(), features, version, str(OPTIMIZATION)


def _machine() -> Any:
    """A target machine of its own: the engine that is given one owns it, and takes it along when it goes."""
    triple, cpu, features, *_ = _platform()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(
        cpu=cpu, features=features, opt=OPTIMIZATION, jit=True, codemodel="jitdefault"
    )


def _compile(text: str, names: Sequence[str], vectors: bool) -> bytes:
    machine = _machine()
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    for function in module.functions:
        if not function.is_declaration and function.name not in names:
            function.linkage = llvm.Linkage.internal
    module.verify()
    tuning = llvm.create_pipeline_tuning_options(speed_level=OPTIMIZATION)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = vectors
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    outside = [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    unknown = sorted(set(outside) - {"sin", "cos", "memset", "memcpy"})
    if unknown:
        raise RuntimeError(f"the module calls functions that it does not hold: {', '.join(unknown)}")
    objects: bytes = machine.emit_object(module)
    return objects


@lru_cache(maxsize=8)
def program(function: Callable[[Any], None], count: int, directory: Path) -> Callable[[int], None]:
    """A function in the little language of `language.py` as machine code: it takes the address of its table of words.

    Args:
        function: of one table of words.
        count: words in the table.
        directory: of the store.

    Raises:
        RuntimeError: when it must be compiled and this package's files have changed since they were imported: what
            Python has in memory and what it would read now do not belong together.
    """
    name = function.__name__

    def text() -> str:
        if _read() != SOURCES:
            raise RuntimeError("nlmegen was updated while this Python was running; start Python again")
        return translate(function, name, count)

    # what it is made of is spread over this package: any change here, and it is translated anew
    key = "\n".join((name, *SOURCES))
    code = compiled(key, (name,), text, Store(directory), vectors=False)
    entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address[name])

    def run(words: int) -> None:
        # `code` is named here so that it lives as long as its function
        assert code.address[name]
        entry(words)

    return run
