#!/usr/bin/env python3
"""What nvcc made of the kernels: registers, spills and loads in flight, and what must not be.

    tools/sass.py FOLDER ARCH...   FOLDER: FILE.sm_ARCH.cubin and .log (ptxas -v) of cuda/FILE.cu

Columns, for each kernel and architecture:
    regs block   registers of a thread; the most threads that a block may have (__launch_bounds__)
    shared bars  static shared memory in bytes; barriers
    stack local  bytes of the stack; loads and stores of local memory (spills are some of them)
    loop         of the hottest loop, that with the most HMMA, or else FFMA and DFMA: loads of
                 global memory, of shared memory and ldmatrix ahead of the first of those
    behind       loads of global memory behind a store to it, anywhere in the code; in its loops
    burst        the most loads of global memory with no store between them
Fails where a kernel has local memory or a stack, where the registers of its blocks are more than a
multiprocessor has, and where a kernel that is named below misses what is asked of it.
"""
import re
import shutil
import subprocess
import sys
from pathlib import Path

REGISTERS = 65536  # of a multiprocessor, sm_80 to sm_90
# Of global memory, and of any, where the compiler does not know which.
LOAD, STORE, COPY = r"LDG(?!STS)|LD\.", r"STG|ST\.", r"LDGSTS\.E\.BYPASS\.128"
VECTOR = r"LDG?\.E.*\.128"
# kernel, what it must have in one of its loops, at least how many of each, and of how many instructions
# the shortest such loop is at most (about a tenth more than when this was written; 0: any)
LOOPS = [
    # rows of weights of 512 bytes a warp, each copy asked for as one is used: 36 instructions each
    (r"matvec_kernel<", {COPY: 8, "FFMA": 16}, 0),
    (r"matvec_kernel<bf16, 1, true, true>", {COPY: 8, "FFMA": 64}, 320),
    (r"few_kernel<", {COPY: 8, "FFMA": 64}, 0),
    (r"few_kernel<bf16, 1, 8>", {COPY: 8, "FFMA": 512}, 1410),
    # whole rows of decode and of prefill
    (r"attend_one_whole<", {COPY: 8, "HMMA": 8}, 0),
    (r"attend_one_whole<\w+, 128>", {COPY: 32, "HMMA": 16, "LDSM": 16}, 380),
    (r"attend_tiles_whole_kernel<\w+, 128, 2>", {COPY: 32, "HMMA": 256, "LDSM": 64}, 1930),
    # eight groups of codes a lane, of 3 bits at most, and their products; before rotation all of a step
    (r"attend_one_tensor<\w+, 128, 1, true, false>", {"PRMT": 28, "HMMA": 8}, 106),
    (r"attend_one_tensor<\w+, 128, 1, false, false>", {"PRMT": 200, "HMMA": 64}, 1960),
    (r"attend_joint_kernel<\w+, 2>", {"PRMT": 100, "HMMA": 56}, 740),
    # a float in three parts
    (r"(append_tiles|turn_tiles|decode_tiles|rebuild_keys|rebuild_values)_kernel<", {"HMMA": 48}, 0),
]
# kernel, what its hottest loop has ahead of its arithmetic, at least how many of them
AHEAD = [(r"attend_tiles_whole_kernel<", COPY, 8)]  # the next tile is asked for first
# kernel, how many loads it has on their way at once at some point, at least: with no store between them
BURST = [
    (r"(append|turn|decode)_tiles_kernel<", 16),
    (r"append_plain_kernel<", 16),
    (r"rmsnorm_kernel<\w+, \w+, 4>", 8),
    (r"merge_kernel", 20),
    (r"argmax(_parts)?_kernel", 8),
    (r"describe_heads<\w+, \d+, \d, false", 4),
]
# kernel, how many of its blocks a multiprocessor's registers hold, at least
RESIDENT = [
    (r"attend_one_tensor<\w+, \d+, 1, true", 4),
    (r"attend_one_tensor<\w+, \d+, 1, false", 3),
    (r"attend_one_tensor<\w+, \d+, 2,", 2),
    (r"attend_one_whole<", 2),
    (r"attend_joint_kernel<", 2),
    (r"attend_tiles_(whole|tensor)_kernel<\w+, \d+, (2|true|false)", 2),
    (r"append_(one|later)_kernel<", 2),
    (r"turn_tiles_kernel<", 2),
    (r"append_tiles_kernel<", 2),
]
# A half number converted to bytes: what ptxas 13.0 makes of a 16-bit register that is stored by bytes.
PUNNED = r"F2I\.[US]8\.(B?F16)"
INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
# kernels of launch_ahead, by what the sources give it (a name, or one of two, or those of a variable): on
# sm_90 they wait for those before them (griddepcontrol.wait)
LAUNCHED = re.compile(r"launch_ahead\(\s*([^,(]*)")
NAMED = r"\b([a-z]\w+)(?=[<,\s]|$)"
# kernels that read all they need of a row before they write any of it
ROUND_TRIP = r"^(rmsnorm|rope|embed|swiglu|swiglu_rounded)_kernel"
# the same of each turn of their loops: behind a loop the next one reads again
ROUND_TRIPS = r"^(append_plain|append_tiles|turn_tiles)_kernel"


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
    # Behind the last way out lies what ptxas put out of line: its branches back are ways home.
    last = max((address for address, op, _ in code if op.startswith("EXIT")), default=code[-1][0])
    ends = []
    for i, (address, op, operands) in enumerate(code):
        target = re.findall(r"0x([0-9a-f]+)", operands)
        if op.split(".")[0] == "BRA" and target and int(target[-1], 16) <= address <= last:
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


def early_kernels(folder):
    """The names of all kernels that are launched ahead in the sources of a folder."""
    names = set()
    for source in sorted([*folder.glob("*.cu"), *folder.glob("*.cuh")]):
        text = source.read_text()
        for what in LAUNCHED.findall(text):
            if what == "kernel":  # auto kernel = one ? a : b
                what = " ".join(re.findall(r"\bkernel = ([^;]*);", text))
            names |= {name for name in re.findall(NAMED, what) if re.search(rf"\b{name}\b[^;{{]*\(", text)}
    return {name for name in names if name.endswith("_kernel") or name.startswith("attend_")}


def behind(ops):
    """Loads of global memory that have a store to it before them."""
    first = next((i for i, op in enumerate(ops) if re.match(STORE, op)), len(ops))
    return count(ops[first:], LOAD)


def look(code):
    """What the machine code says of a kernel."""
    ops = [op for _, op, _ in code]
    bodies = loops(code)
    arithmetic = "HMMA" if count(ops, "HMMA") else "FFMA|DFMA"
    burst = now = 0
    for op in ops:
        now = 0 if re.match(r"STS|" + STORE, op) else now + bool(re.match(LOAD, op))
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
        "bodies": bodies,
        "punned": count(ops, PUNNED),
        "loop": f"{count(ahead, LOAD)} ({count(ahead, VECTOR)} x 16) "
                f"{count(ahead, 'LDS(?!M)')} {count(ahead, 'LDSM')}",
        "behind": behind(ops),
        "behind_in_loops": sum(behind(body) for body in bodies),
        "burst": burst,
        "awaits": count(ops, "ACQBULK"),
    }


def complaints(name, one):
    if one["stack"] or one["spills"] or one["local"]:
        yield f"{one['stack']} bytes of stack, {one['spills']} of spills: expected none"
    blocks = max([n for kernel, n in RESIDENT if re.match(kernel, name)], default=1)
    if blocks * one["block"] * ((one["regs"] + 7) // 8 * 8) > REGISTERS:
        yield f"{one['regs']} registers of {one['block']} threads, {blocks} blocks: more than {REGISTERS}"
    for kernel, what, least in AHEAD:
        if re.match(kernel, name):
            got = count(one["ahead"], what)
            if got < least:
                yield f"{got} of {what} ahead of the arithmetic, expected {least}"
    for kernel, has, most in LOOPS:
        if not re.match(kernel, name):
            continue
        lengths = [len(body) for body in one["bodies"]
                   if all(count(body, what) >= least for what, least in has.items())]
        if not lengths:
            yield f"no loop has {', '.join(f'{n} of {what}' for what, n in has.items())}"
        elif most and min(lengths) > most:
            yield f"{min(lengths)} instructions in its loop, expected {most} at most"
    for kernel, least in BURST:
        if re.match(kernel, name) and one["burst"] < least:
            yield f"{one['burst']} loads with no store between them at most, expected {least}"
    if one["punned"]:
        yield f"{one['punned']} half numbers converted to bytes, expected none"
    if one["arch"] >= 90 and name.split("<")[0] in one["early"] and not one["awaits"]:
        yield "it may begin early, and does not wait for the kernels before it"
    waits = (one["behind"] if re.match(ROUND_TRIP, name) else
             one["behind_in_loops"] if re.match(ROUND_TRIPS, name) else 0)
    if waits:
        yield f"{waits} loads wait behind a store, expected none"


def main():
    folder, architectures = Path(sys.argv[1]), sys.argv[2:]
    cuobjdump = shutil.which("cuobjdump")
    if not cuobjdump:
        print("error: make sass: expected cuobjdump, found none: it is part of the CUDA toolkit, or "
              "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm", file=sys.stderr)
        return 1
    print(f"{'kernel':<48}{'sm':>4}{'regs':>6}{'block':>7}{'shared':>8}{'bars':>6}{'stack':>7}"
          f"{'local':>7}  {'loop: global, shared, ldmatrix':<32}{'behind':>9}{'burst':>7}")
    failures, seen = [], set()
    early = early_kernels(Path(__file__).parent.parent / "cuda")
    for arch in architectures:
        for log in sorted(folder.glob(f"*.sm_{arch}.log")):
            kernels, cubin = read_log(log), log.with_suffix(".cubin")
            bounds, code = read_bounds(cuobjdump, cubin), read_code(cuobjdump, cubin)
            names = run("c++filt", *kernels).splitlines() if kernels else []
            for (mangled, one), full in sorted(zip(kernels.items(), names), key=lambda x: x[1]):
                name = short(full)
                seen.add(name)
                # Without a bound any block may come.
                one["arch"], one["early"] = int(arch), early
                one["block"] = bounds.get(mangled, 1024)
                one.update(look(code[mangled]))
                print(f"{name:<48}{arch:>4}{one['regs']:>6}{one['block']:>7}{one['shared']:>8}"
                      f"{one['bars']:>6}{one['stack']:>7}{one['local']:>7}  {one['loop']:<32}"
                      f"{one['behind']:>6} {one['behind_in_loops']:<4}{one['burst']:>5}")
                failures += [f"{name}, sm_{arch}: {text}" for text in complaints(name, one)]
    for kernel, *_ in AHEAD + LOOPS + BURST + RESIDENT + [(name + r"\b",) for name in early]:
        if not any(re.match(kernel, name) for name in seen):
            failures.append(f"no kernel is called {kernel}")
    for text in failures:
        print(f"error: {text}", file=sys.stderr)
    print(f"sass: {len(seen)} kernels, {len(failures)} complaints", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
