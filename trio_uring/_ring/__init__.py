"""Operations, the table of opcodes, the Ring protocol and the kernel's ring. No task, no trio.

Memory safety is ensured here; the packages above need not think of it.
"""
