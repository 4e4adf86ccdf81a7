"""Compiled pages: a page as machine code, eight rows abreast. First the differential equations:

    emit.py, functions.py   expression graphs as LLVM IR on vectors of eight; exp, log, pow, ...
    protocol.py             what a page's functions and the driver have agreed on: read this first
    page.py                 the module of a page: rates, start, acceleration, step
    norm.py                 error norm, verdict and next step, for every method
    explicit.py             Tsitouras' explicit step          rosenbrock.py  the stiff step
    driver.py               lanes, points, moving doses, failures: one function for all pages, in the language of
    language.py             whole numbers, doubles and arrays at addresses, which translate.py turns into LLVM IR
    store.py                object code on disk               code.py        compile, keep, load
    machine.py              a page's kernel: arrays in, arrays out
    adjoint.py              gradients backwards: tape.py over the steps; reverse.py, reverse_stiff.py  one step

and pages with a closed form:

    scan.py                 a plan (`structure.plans`, `structure.densities`) as one function over a row's observations
    rows.py                 rows into lanes and back        search.py       Newton's method, a row a lane
    patients.py             what rows are made of           closed.py       the programs of a page: tensors in and out

Needs llvmlite (extra `fast`).
"""
