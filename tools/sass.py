#!/usr/bin/env python3
"""What nvcc made of the kernels: registers, spills and loads in flight, and what must not be.

    tools/sass.py FOLDER ARCH...   FOLDER: FILE.sm_ARCH.cubin and .log (ptxas -v) of cuda/FILE.cu

Columns, for each kernel and architecture:
    regs block   registers of a thread; the most threads that a block may have (__launch_bounds__)
    shared bars  static shared memory in bytes; barriers
    stack local  bytes of the stack; loads and stores of local memory (spills are some of them)
    loop         of the hottest loop, that with the most HMMA, or else FFMA and DFMA: loads of
                 global memory, of shared memory and ldmatrix ahead of the first of those
    behind       loads of global memory in a loop behind a store to it: each a round trip more
Fails where a kernel has local memory or a stack, where a block's registers are more than a
multiprocessor has, and where a kernel that is named below misses what is asked of it. Without
cuobjdump (CUDA toolkit, nvidia-cuda-cuobjdump) the columns from machine code are empty, and said so.
"""
import re
import shutil
import subprocess
import sys
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor, sm_80 to sm_90
VECTOR = r"LDG\.E.*\.128"
# kernel, what its hottest loop has ahead of its arithmetic, at least how many of them
AHEAD = [
    (r"attend_one_whole<", r"LDSM", 1),
    (r"attend_one_tensor<", r"LDS", 1),  # codes without ldmatrix
    (r"attend_tiles_tensor_kernel<", r"LDSM", 1),
    (r"attend_tiles_whole_kernel<", r"LDGSTS\.E\.BYPASS\.128", 8),  # the next tile is asked for first
]
# kernel, what its hottest loop has in all, at least how many of them
WITHIN = [
    (r"matvec_kernel<", r"LDGSTS\.E\.BYPASS\.128", 8),  # each copy is asked for as one is used
    (r"^few_kernel<", r"LDGSTS\.E\.BYPASS\.128", 8),
    (r"attend_one_whole<", r"LDGSTS\.E\.BYPASS\.128", 8),
    (r"attend_tiles_whole_kernel<", r"HMMA", 128),
    (r"(append_tiles|turn_tiles|decode_tiles|rebuild_keys|rebuild_values)_kernel<", r"HMMA", 48),
]
# kernel, how many loads it has on their way at once at some point, at least: with no store between them
BURST = [(r"(append|turn|decode)_tiles_kernel<", 16)]
# A half number converted to bytes: what ptxas 13.0 makes of a 16-bit register that is stored by bytes.
PUNNED = r"F2I\.[US]8\.(B?F16)"
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
# kernels of launch_ahead: on sm_90 they wait for those before them (griddepcontrol.wait)
EARLY = (r"^(matvec|plain_matvec|few|finish_few|weigh)_kernel"
         r"|^(append_\w+|\w*joint\w*|turn_tiles|merge|embed|argmax\w*)_kernel"
         r"|^attend_one_\w+<")
# kernels that read all they need of a row before they write any of it
ROUND_TRIP = r"^(rmsnorm|rope|embed|swiglu|turn_tiles)_kernel"


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def short(name):
    """rmsnorm_kernel<bf16> from void stief::rmsnorm_kernel<stief::bf16>(float*, ...)"""
    name = name.replace("stief::", "").replace("void ", "").replace("(bool)1", "true")
    name = name.replace("(bool)0", "false").replace("(int)", "")
    depth = 0
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:i]
    return name


def read_log(path):
    """ptxas -v: mangled name -> what it reports"""
    kernels, name = {}, None
    for line in path.read_text().splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            name = found[1]
            kernels[name] = {"regs": 0, "bars": 0, "shared": 0, "stack": 0, "spills": 0}
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", line):
            if name:
                kernels[name].update(stack=int(found[1]), spills=int(found[2]) + int(found[3]))
        elif found := re.search(r"Used (\d+) registers", line):
            bars = re.search(r"used (\d+) barriers", line)
            smem = re.search(r"(\d+) bytes smem", line)
            kernels[name].update(regs=int(found[1]), bars=int(bars[1]) if bars else 0,
                                 shared=int(smem[1]) if smem else 0)
    return kernels


def read_bounds(cuobjdump, cubin):
    """mangled name -> threads of __launch_bounds__"""
    bounds, name, wanted = {}, None, False
    for line in run(cuobjdump, "-elf", str(cubin)).splitlines():
        if found := re.match(r"\.nv\.info\.(\w+)", line.strip()):
            name = found[1]
        wanted = wanted and "Attribute" not in line or "EIATTR_MAX_THREADS" in line
        if wanted and name and (found := re.search(r"Value:\s*0x([0-9a-f]+)", line)):
            bounds[name] = int(found[1], 16)
    return bounds


def read_code(cuobjdump, cubin):
    """mangled name -> [(address, instruction, operands)]"""
    code, name = {}, None
    for line in run(cuobjdump, "-sass", str(cubin)).splitlines():
        if found := re.search(r"Function : (\w+)", line):
            name = found[1]
            code[name] = []
        elif found := INSTRUCTION.match(line):
            code[name].append((int(found[1], 16), found[2], found[3]))
    return code


def loops(code):
    """Of every branch backwards the instructions from its target on, less those of loops inside."""
    ends = []
    for i, (address, op, operands) in enumerate(code):
        target = re.findall(r"0x([0-9a-f]+)", operands)
        if op.split(".")[0] == "BRA" and target and int(target[-1], 16) <= address:
            first = next(k for k, one in enumerate(code) if one[0] == int(target[-1], 16))
            if first < i:  # not the halt behind the code
                ends.append((first, i))
    bodies = []
    for a in ends:
        inside = [b for b in ends if b != a and a[0] <= b[0] and b[1] <= a[1]]
        bodies.append([code[i][1] for i in range(a[0], a[1] + 1)
                       if not any(b[0] <= i <= b[1] for b in inside)])
    return bodies


def count(ops, what):
    return sum(bool(re.match(what, op)) for op in ops)


def look(code):
    """What the machine code says of a kernel."""
    ops = [op for _, op, _ in code]
    bodies = loops(code)
    behind = 0
    for body in bodies:
        stored = False
        for op in body:
            stored = stored or op.startswith("STG")
            behind += stored and op.startswith("LDG")
    arithmetic = "HMMA" if count(ops, "HMMA") else "FFMA|DFMA"
    burst = now = 0
    for op in ops:
        now = 0 if re.match(r"ST[GS]", op) else now + bool(re.match(r"LDG", op))
        burst = max(burst, now)
    hot = max(bodies or [ops], key=lambda body: count(body, arithmetic))
    ahead = []
    for op in hot:
        if re.match(arithmetic, op):
            break
        ahead.append(op)
    return {
        "local": count(ops, r"(LDL|STL)"),
        "ahead": ahead,
        "hot": hot,
        "punned": count(ops, PUNNED),
        "loop": f"{count(ahead, 'LDG')} ({count(ahead, VECTOR)} x 16) "
                f"{count(ahead, 'LDS(?!M)')} {count(ahead, 'LDSM')}",
        "behind": behind,
        "burst": burst,
        "awaits": count(ops, "ACQBULK"),
    }


def complaints(name, one):
    if one["stack"] or one["spills"] or one.get("local"):
        yield f"{one['stack']} bytes of stack, {one['spills']} of spills: expected none"
    if one["block"] * ((one["regs"] + 7) // 8 * 8) > REGISTERS:
        yield f"{one['regs']} registers of {one['block']} threads: more than {REGISTERS}"
    if "ahead" not in one:
        return
    for kernel, what, least in AHEAD:
        if re.match(kernel, name):
            got = count(one["ahead"], what)
            if got < least:
                yield f"{got} of {what} ahead of the arithmetic, expected {least}"
    for kernel, what, least in WITHIN:
        if re.match(kernel, name):
            got = count(one["hot"], what)
            if got < least:
                yield f"{got} of {what} in its hottest loop, expected {least}"
    for kernel, least in BURST:
        if re.match(kernel, name) and one["burst"] < least:
            yield f"{one['burst']} loads with no store between them at most, expected {least}"
    if one["punned"]:
        yield f"{one['punned']} half numbers converted to bytes, expected none"
    if one["arch"] >= 90 and re.match(EARLY, name) and not one["awaits"]:
        yield "it may begin early, and does not wait for the kernels before it"
    if re.match(ROUND_TRIP, name) and one["behind"]:
        yield f"{one['behind']} loads wait behind a store, expected none"


def main():
    folder, architectures = Path(sys.argv[1]), sys.argv[2:]
    cuobjdump = shutil.which("cuobjdump")
    print(f"{'kernel':<48}{'sm':>4}{'regs':>6}{'block':>7}{'shared':>8}{'bars':>6}{'stack':>7}"
          f"{'local':>7}  {'loop: global, shared, ldmatrix':<32}{'behind':>6}")
    failures, seen = [], set()
    for arch in architectures:
        for log in sorted(folder.glob(f"*.sm_{arch}.log")):
            kernels, cubin = read_log(log), log.with_suffix(".cubin")
            bounds = read_bounds(cuobjdump, cubin) if cuobjdump else {}
            code = read_code(cuobjdump, cubin) if cuobjdump else {}
            names = run("c++filt", *kernels).splitlines() if kernels else []
            for (mangled, one), full in sorted(zip(kernels.items(), names), key=lambda x: x[1]):
                name = short(full)
                seen.add(name)
                # Without a bound any block may come.
                one["arch"] = int(arch)
                one["block"] = bounds.get(mangled, 1024) if cuobjdump else 0
                if mangled in code:
                    one.update(look(code[mangled]))
                print(f"{name:<48}{arch:>4}{one['regs']:>6}{one['block']:>7}{one['shared']:>8}"
                      f"{one['bars']:>6}{one['stack']:>7}{one.get('local', ''):>7}  "
                      f"{one.get('loop', ''):<32}{one.get('behind', ''):>6}")
                failures += [f"{name}, sm_{arch}: {text}" for text in complaints(name, one)]
    for kernel, *_ in AHEAD + WITHIN + BURST:
        if not any(re.match(kernel, name) for name in seen):
            failures.append(f"no kernel is called {kernel}")
    if not cuobjdump:
        print("sass: cuobjdump is not here: loops, stores and launch bounds were not looked at",
              file=sys.stderr)
    for text in failures:
        print(f"error: {text}", file=sys.stderr)
    print(f"sass: {len(seen)} kernels, {len(failures)} complaints", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
