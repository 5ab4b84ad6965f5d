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
COPIES = ["LDGSTS.E.BYPASS.128 [R30], desc[UR6][R8.64], P0"] * 8
SUMS = ["FFMA R1, R4, R5, R1"] * 16
PRODUCT = "HMMA R1, R4, R5, R1"


def listing(body, behind=()):
    """A loop as cuobjdump -sass prints it, a way out, and what ptxas put out of line behind that."""
    lines = [*body, "@P0 BRA 0x0", "EXIT", *behind, "BRA 0x0"]
    text = "\n".join(f"        /*{16 * i:04x}*/   {line} ;" for i, line in enumerate(lines))
    return [(int(found[1], 16), found[2], found[3])
            for found in map(sass.INSTRUCTION.match, text.splitlines())]


def kernel(stack=0, spill=0, regs=64, block=256, arch=80, body=(*COPIES, *SUMS), behind=()):
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        log.write_text(LOG.format(stack=stack, spill=spill, regs=regs))
        (one,) = sass.read_log(log).values()
    return {**one, "block": block, "arch": arch, "early": {"matvec_kernel"},
            **sass.look(listing(body, behind))}


def said(name, one):
    return " | ".join(sass.complaints(name, one))


def main():
    matvec, norm = "matvec_kernel<bf16, 2, true, false>", "rmsnorm_any_kernel<bf16>"
    rope, codes = "rope_kernel<4, 1>", "attend_one_tensor<bf16, 128, 1, true, false>"
    waits = ["LDG.E R4, [R2]", "STG.E [R2], R4", "LDG.E R5, [R2+0x4]", "FFMA R1, R4, R5, R1"]
    group = [*["PRMT R1, R2, 0x4140, R3"] * 28, *[PRODUCT] * 8]
    cases = [
        ("a sound kernel", matvec, kernel(), None),
        ("a stack", matvec, kernel(stack=16), "16 bytes of stack"),
        ("spills", matvec, kernel(spill=8), "16 of spills"),
        ("local memory", matvec, kernel(body=[*COPIES, "STL [R1], R4", *SUMS]), "bytes of stack"),
        ("too many registers", matvec, kernel(regs=129, block=512), "129 registers of 512"),
        ("room for a block less", codes, kernel(regs=136, block=128, body=group), "128 threads, 4 blocks"),
        ("codes in few instructions", codes, kernel(regs=128, block=128, body=group), None),
        ("codes in many", codes, kernel(regs=128, block=128, body=[*group, *["SHF R1, R1, R2"] * 80]),
         "117 instructions in its loop, expected 106"),
        ("their loop out of line alone", codes, kernel(regs=128, block=128, body=SUMS, behind=group),
         "no loop has 28 of PRMT, 8 of HMMA"),
        ("the next tile's copies behind the products", "attend_tiles_whole_kernel<f16, 64, 1>",
         kernel(body=[PRODUCT, *COPIES]), "ahead of the arithmetic, expected 8"),
        ("too few copies in the loop", matvec, kernel(body=[*COPIES[1:], *SUMS]), "no loop has 8 of LDGSTS"),
        ("loads one after the other", "merge_kernel", kernel(body=["LD.E R4, [R2]", "STS [R3], R4"] * 20),
         "1 loads with no store between them"),
        ("and at once", "merge_kernel", kernel(body=[*["LD.E R4, [R2]"] * 20, "STS [R3], R4"]), None),
        ("a half number converted to a byte", matvec,
         kernel(body=["F2I.U8.F16.TRUNC.NTZ R13, R10", *COPIES, *SUMS]), "1 half numbers"),
        ("a load behind a store", rope, kernel(body=waits), "1 loads wait behind a store"),
        ("one of any memory", rope, kernel(body=["ST.E [R2], R4", "LD.E R5, [R2+0x4]"]),
         "1 loads wait behind a store"),
        ("in a turn of a loop", "append_plain_kernel<f16>",
         kernel(body=[*["LDG.E R4, [R2]"] * 16, *waits]), "1 loads wait behind a store"),
        ("where it is not asked for", norm, kernel(body=waits), None),
        ("an early kernel that waits", matvec,
         kernel(arch=90, body=["ACQBULK", *COPIES, *SUMS]), None),
        ("one that does not", matvec, kernel(arch=90), "does not wait for the kernels before"),
    ]
    for why, name, one, expected in cases:
        got = said(name, one)
        assert expected in got if expected else not got, f"{why}: expected {expected}, got '{got}'"


main()
