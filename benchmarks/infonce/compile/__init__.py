"""What the compiler makes of the GPU loss kernels, read from their machine code; needs Triton and
no GPU.

    cases.py      the kernels to compile: every variant of every tiling
    build.py      compiles one and reads its figures
    sass.py       the figures of a listing of machine code; a text in, numbers out
    pipeline.py   the same where some warps copy and others multiply
    occupancy.py  programs that a multiprocessor holds at once
    record.py     what is wrong with a kernel, the recorded figures of a version of Triton, and what has become worse

``python -m benchmarks.infonce.compile_sweep`` runs them.
"""
