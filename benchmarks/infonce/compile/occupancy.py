"""How many programs (CTAs) a multiprocessor holds at once."""

from typing import NamedTuple

WARP = 32  # threads
SCHEDULERS = 4  # of a multiprocessor, each with a quarter of its registers
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # registers are allocated to a warp in such units
SHARED_UNIT = 128  # bytes
RESERVED = 1024  # bytes of shared memory that the driver takes for each program
PROGRAMS = 32
WARPS = 64


class Shared(NamedTuple):
    """Bytes of shared memory."""

    multiprocessor: int
    program: int  # the most that a program may ask for


SHARED = {80: Shared(164 * 1024, 163 * 1024), 90: Shared(228 * 1024, 227 * 1024)}


def programs_per_multiprocessor(arch: int, warps: int, registers: int, shared: int) -> int:
    """Returns how many programs fit at once; 0 if not even one does.

    Args:
        arch: 80 or 90. They differ in shared memory alone.
        warps: of a program.
        registers: of a thread.
        shared: bytes that a program asks for.
    """
    of_a_warp = _rounded_up(registers * WARP, REGISTER_UNIT)
    if shared > SHARED[arch].program or of_a_warp * _rounded_up(warps, SCHEDULERS) > REGISTERS:
        return 0
    by_registers = REGISTERS // SCHEDULERS // of_a_warp * SCHEDULERS // warps
    by_shared = SHARED[arch].multiprocessor // _rounded_up(shared + RESERVED, SHARED_UNIT)
    return min(by_registers, by_shared, WARPS // warps, PROGRAMS)


def _rounded_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
