#!/usr/bin/env python3
"""What tools/sass.py must report, of listings made for it: each fault alone, and none of the sound."""
import tempfile
from pathlib import Path

import sass

LOG = """\
ptxas info    : Compiling entry function '_Z4kernPf' for 'sm_90'
ptxas info    : Function properties for _Z4kernPf
    {stack} bytes stack frame, {spill} bytes spill stores, {spill} bytes spill loads
ptxas info    : Used {regs} registers, used 1 barriers, 512 bytes smem
"""
# A loop as cuobjdump -sass prints it: loads, arithmetic, a store, and the way back.
LOADS = ["LDSM.16.M88.4 R4, [R2]"]
COPIES = ["LDGSTS.E.BYPASS.128 [R30], desc[UR6][R8.64], P0"] * 8


def listing(*body):
    lines = [*body, "@P0 BRA 0x0"]
    text = "\n".join(f"        /*{16 * i:04x}*/   {line} ;" for i, line in enumerate(lines))
    return [(int(found[1], 16), found[2], found[3])
            for found in map(sass.INSTRUCTION.match, text.splitlines())]


def kernel(stack=0, spill=0, regs=64, block=256, arch=80, body=(*COPIES, "FFMA R1, R4, R5, R1")):
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_text(LOG.format(stack=stack, spill=spill, regs=regs))
        (one,) = sass.read_log(log).values()
    return {**one, "block": block, "arch": arch, **sass.look(listing(*body))}


def said(name, one):
    return " | ".join(sass.complaints(name, one))


def main():
    matvec, norm = "matvec_kernel<bf16, 1, true, false>", "rmsnorm_kernel<bf16>"
    waits = ["LDG.E R4, [R2]", "STG.E [R2], R4", "LDG.E R5, [R2+0x4]", "FFMA R1, R4, R5, R1"]
    cases = [
        ("a sound kernel", matvec, kernel(), None),
        ("a stack", matvec, kernel(stack=16), "16 bytes of stack"),
        ("spills", matvec, kernel(spill=8), "16 of spills"),
        ("local memory", matvec, kernel(body=[*COPIES, "STL [R1], R4", "FFMA R1, R4, R5, R1"]),
         "bytes of stack"),
        ("too many registers", matvec, kernel(regs=129, block=512), "129 registers of 512"),
        ("loads behind the arithmetic", "attend_tiles_tensor_kernel<f16, 128, true>",
         kernel(body=["HMMA R1, R4, R5, R1", *LOADS]), "0 of LDSM ahead"),
        ("too few copies in the loop", matvec, kernel(body=[*COPIES[1:], "FFMA R1, R4, R5, R1"]),
         "7 of LDGSTS"),
        ("a half number converted to a byte", matvec,
         kernel(body=["F2I.U8.F16.TRUNC.NTZ R13, R10", *COPIES, "FFMA R1, R4, R5, R1"]),
         "1 half numbers"),
        ("a load behind a store", norm, kernel(body=waits), "1 loads wait behind a store"),
        ("an early kernel that waits", matvec,
         kernel(arch=90, body=["ACQBULK", *COPIES, "FFMA R1, R4, R5, R1"]), None),
        ("one that does not", matvec, kernel(arch=90), "does not wait for the kernels before"),
        ("that elsewhere", "other_kernel", kernel(body=waits), None),
    ]
    for why, name, one, expected in cases:
        got = said(name, one)
        assert expected in got if expected else not got, f"{why}: expected {expected}, got '{got}'"


main()
