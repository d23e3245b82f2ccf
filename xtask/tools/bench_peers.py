#!/usr/bin/env python3
"""A model on ONNX Runtime, OpenVINO and fqc, side by side on this machine.

usage: bench_peers.py CACHE [--model minilm] [--isa LEVEL] [--fqc BINARY] [--threads 2] [--rounds 5]
                      [--seconds 1] [--shapes BxS...] [--only NAME...] [--save FILE]
                      [--quiet-cores] [--limit SECONDS] [--compiled FILE] [--float FILE]
Each peer lives in a process of its own. The tools take turns, round after round, so that a change
of the machine's speed meets all of them alike; a turn is some seconds of inferences after a warm
one. Prints a table a shape: the median of the turns' medians, the fastest and the slowest
inference in milliseconds, and the ratio of each median to fqc's (above 1: fqc is faster).
--isa forbids all instructions beyond a level, to fqc and, by oneDNN's own variable, to OpenVINO;
ONNX Runtime has no such switch and is left out then.
--quiet-cores is for machines with more processors than threads, whose cores others share: turns
are on the processors that are fastest just then, and again if those were slower for a while.
--limit begins no round after so many seconds of rounds; what is shown and saved says how many
there were.
--compiled takes a .fqbin as it is, on machines where fqc cannot compile (call this script itself
there: `cargo xtask peers` builds all of fqc); --float takes a float model in place of the cache's.
--save appends one line of JSON with the commit, the machine and all figures.
"""
import argparse
import contextlib
import datetime
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import statistics
import subprocess
import time

import peers

SHAPES = {"minilm": ["1x16", "1x128", "8x128", "32x128"], "smollm2": ["1x256"]}
# What fqc is told about each model beside the calibration text.
OPTIONS = {"minilm": ["--max-extra", "2"], "smollm2": ["--windows", "32"]}
# Level of fqc: greatest instruction set of oneDNN.
ISA = {
    "avx2": "AVX2",
    "avx512-vnni": "AVX512_CORE_VNNI",
    "avx512-bf16": "AVX512_CORE_BF16",
    "amx-int8": "AVX512_CORE_AMX",
}
# Length of what comes before a turn, as a share of it.
WARM = 0.5
FLAGS = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"]


def worker(pipe, name, cache, threads, model, pin, float_model):
    """Answers each shape with median, minimum and maximum of one turn in milliseconds."""
    runner = peers.peers(cache, threads, model, pin, float_model)[name]()
    ready = {}
    pipe.send("ready")
    while (request := pipe.recv()) is not None:
        shape, seconds = request
        if shape not in ready:
            batch, seq = map(int, shape.split("x"))
            windows = peers.text_windows(cache, "persuasion.txt", batch, seq, model)
            ready[shape] = runner(peers.feeds(windows, model))
        infer = ready[shape]
        end = time.perf_counter() + WARM * seconds
        infer()  # warms the caches, the threads and the clock
        while time.perf_counter() < end:
            infer()
        times, end = [], time.perf_counter() + seconds
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            infer()
            times.append((time.perf_counter() - start) * 1000)
        pipe.send((statistics.median(times), min(times), max(times)))


def multiply(pipe):
    """Answers each processor with the GFLOP/s that float products reach there most of the time."""
    import numpy

    rng = numpy.random.default_rng(1)
    left, right = (rng.random((256, 256), numpy.float32) for _ in range(2))
    while (request := pipe.recv()) is not None:
        processor, products = request
        os.sched_setaffinity(0, {processor})
        times = []
        for _ in range(products):
            start = time.perf_counter()
            left @ right
            times.append(time.perf_counter() - start)
        pipe.send(2 * 256**3 / statistics.median(times) / 1e9)


class QuietCores:
    """Turns on processors that nobody else slows down, for all tools alike: a turn is on processors
    that multiply, together, about as fast as any did before, looked for just before it, and is
    taken again if they were clearly slower just after it."""

    QUIET = 0.85  # of the best rate
    LOOKS = 3
    TRIES = 3
    SPARE = 2  # processors tried beside the fastest: two may share a core

    def __init__(self, threads):
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of the processes that are started here
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for _ in range(threads):
            pipe, theirs = context.Pipe()
            self.processes.append(context.Process(target=multiply, args=(theirs,), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(pipe)
        del os.environ["OPENBLAS_NUM_THREADS"]
        self.processors = sorted(os.sched_getaffinity(0))
        self.best = float("inf")  # so that all looks are taken
        self.best = max(self.quietest()[0] for _ in range(5))
        self.again = {}

    def alone(self, processor):
        self.pipes[0].send((processor, 12))
        return self.pipes[0].recv()

    def together(self, processors):
        """The rate of the slowest of them."""
        for pipe, processor in zip(self.pipes, processors):
            pipe.send((processor, 60))
        return min(pipe.recv() for pipe in self.pipes)

    def quietest(self):
        """The first processors that are quiet, or the fastest of those that were tried."""
        seen = []
        for _ in range(self.LOOKS):
            rates = {processor: self.alone(processor) for processor in self.processors}
            fastest = sorted(rates, key=rates.get, reverse=True)[:len(self.pipes) + self.SPARE]
            for group in itertools.combinations(fastest, len(self.pipes)):
                seen.append((self.together(group), group))
                if seen[-1][0] >= self.QUIET * self.best:
                    return seen[-1]
        return max(seen)

    def turn(self, name, tool, shape, seconds):
        tries = []
        while len(tries) < self.TRIES:
            before, group = self.quietest()
            tool.place(group)
            times = tool.turn(shape, seconds)
            rates = before, self.together(group)
            self.best = max(self.best, *rates)
            tries.append((min(rates), times))
            if min(rates) >= self.QUIET * self.best:
                break
        self.again[name] = self.again.get(name, 0) + len(tries) - 1
        return max(tries)[1]


class Peer:
    def __init__(self, name, *place):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=worker, args=(theirs, name, *place), daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the process ends a wait for its answer
        self.pipe.recv()

    def place(self, processors):
        """All threads onto these processors."""
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(task.name), processors)

    def turn(self, shape, seconds):
        self.pipe.send((shape, seconds))
        return self.pipe.recv()

    def close(self):
        self.pipe.send(None)
        self.process.join()


class Fqc:
    def __init__(self, binary, model, threads):
        # A file that another machine compiled has another key.
        self.command = [binary, "bench", model, "--threads", str(threads), "--json", "--trust",
                        "--runs-alone"]
        self.milliseconds = {}  # of one run at each shape, once known
        self.processors = os.sched_getaffinity(0)

    def place(self, processors):
        self.processors = processors

    def turn(self, shape, seconds):
        if shape not in self.milliseconds:
            self.run(shape, 3, 3)
        runs = seconds * 1000 / self.milliseconds[shape]
        return self.run(shape, max(1, round(WARM * runs)), max(1, round(runs)))

    def run(self, shape, warm, runs):
        command = self.command + ["--shape", f"input_ids={shape}"]
        command += ["--warmup", str(warm), "--runs", str(runs)]
        answer = subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, self.processors),
        ).stdout
        figures = json.loads(answer)
        self.milliseconds[shape] = figures["median_ms"]
        return figures["median_ms"], figures["min_ms"], figures["max_ms"]

    def close(self):
        pass


def compile_model(binary, cache, name):
    model = cache / "peers" / f"{name}.fqbin"
    model.parent.mkdir(parents=True, exist_ok=True)
    source = cache / "models" / name
    command = [binary, "compile", source / "model.onnx", "-o", model]
    command += ["--calib", cache / "text/emma.txt", "--tokenizer", source / "tokenizer.json"]
    subprocess.run(command + OPTIONS[name], check=True)
    return model


def measure(tools, shapes, args, quiet):
    """Each tool's figures at each shape, and how many rounds there were."""
    turns = {shape: {name: [] for name in tools} for shape in shapes}
    end = time.monotonic() + args.limit
    for number in range(args.rounds):
        if number > 0 and time.monotonic() > end:
            break
        for shape in shapes:
            # Nobody is always first, or behind the same neighbour.
            order = list(tools.items())
            for name, tool in reversed(order) if number % 2 else order:
                if quiet:
                    turn = quiet.turn(name, tool, shape, args.seconds)
                else:
                    turn = tool.turn(shape, args.seconds)
                turns[shape][name].append(turn)
        done = number + 1
        print(f"round {done} of {args.rounds}", flush=True)
    figures = {
        shape: {name: summary(*zip(*all_)) for name, all_ in row.items()}
        for shape, row in turns.items()
    }
    return figures, done


def summary(medians, minima, maxima):
    figures = {
        "median_ms": statistics.median(medians),
        "min_ms": min(minima),
        "max_ms": max(maxima),
    }
    return {name: round(value, 3) for name, value in figures.items()}


def show(figures):
    for shape, row in figures.items():
        fqc = row.get("fqc", {}).get("median_ms")
        print(f"\n{shape:26}{'median ms':>11}{'min':>9}{'max':>9}" + (f"{'/ fqc':>8}" if fqc else ""))
        for name, f in row.items():
            ratio = f"{f['median_ms'] / fqc:8.2f}" if fqc else ""
            print(f"{name:26}{f['median_ms']:11.2f}{f['min_ms']:9.2f}{f['max_ms']:9.2f}{ratio}")
        others = {n: f["median_ms"] for n, f in row.items() if n != "fqc"}
        if fqc and others:
            best = min(others, key=others.get)
            print(f"best other: {best}, {others[best] / fqc:.2f} times fqc's time")


def machine():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {k.strip(): v.strip() for k, v in fields.items()}
    flags = set(fields.get("flags", "").split())
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "flags": [f for f in FLAGS if f in flags],
        "load": os.getloadavg()[0],
    }


def save(path, figures, rounds, args, about):
    root = pathlib.Path(__file__).parent
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    line = {
        "commit": subprocess.run(git, capture_output=True, text=True).stdout.strip(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": about,
        "model": args.model,
        "isa": args.isa,
        "threads": args.threads,
        "rounds": rounds,
        "seconds": args.seconds,
        "quiet_cores": args.quiet_cores,
        "compiled": args.compiled and args.compiled.name,
        "float": args.float and args.float.name,
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"\nadded a line to {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=pathlib.Path)
    parser.add_argument("--fqc", help="the fqc binary")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one turn")
    parser.add_argument("--limit", type=float, default=float("inf"), help="no round after it")
    parser.add_argument("--model", choices=SHAPES, default="minilm")
    parser.add_argument("--isa", choices=ISA, help="the highest level that may be used")
    parser.add_argument("--shapes", nargs="+", metavar="BATCHxSEQ")
    parser.add_argument("--only", nargs="+", help="only the peers whose name holds one of these")
    parser.add_argument("--compiled", type=pathlib.Path, help="the model for fqc, compiled")
    parser.add_argument("--float", type=pathlib.Path, help="the model for the others' floats")
    parser.add_argument("--quiet-cores", action="store_true", help="run on the fastest processors")
    parser.add_argument("--save", type=pathlib.Path, help="a file of JSON lines to add to")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds wants at least one")
    if args.quiet_cores and args.threads > len(os.sched_getaffinity(0)):
        parser.error("--quiet-cores wants at least as many processors as threads")
    about = machine()
    names = list(peers.peers(args.cache, args.threads, args.model))
    if args.isa:
        os.environ["FQC_CPU_LEVEL"] = args.isa
        os.environ["ONEDNN_MAX_CPU_ISA"] = ISA[args.isa]
        names = [n for n in names if n.startswith("openvino")]
    if args.only:
        names = [n for n in names if any(part in n for part in args.only)]
    tools = {}
    for name in names:
        try:
            place = args.cache, args.threads, args.model, not args.quiet_cores, args.float
            tools[name] = Peer(name, *place)
        except EOFError:
            print(f"{name}: does not start here and is left out")
    if args.fqc:
        compiled = args.compiled or compile_model(args.fqc, args.cache, args.model)
        tools["fqc"] = Fqc(args.fqc, compiled, args.threads)
    quiet = QuietCores(args.threads) if args.quiet_cores else None
    print(f"{about['cpu']}, {about['cores']} cores, {' '.join(about['flags'])}, "
          f"{args.threads} threads, load {about['load']:.1f}, at most {args.isa or 'all'}")
    shapes = args.shapes or SHAPES[args.model]
    figures, rounds = measure(tools, shapes, args, quiet)
    for tool in tools.values():
        tool.close()
    if quiet:
        print(f"turns that were taken again: {quiet.again}")
    show(figures)
    if args.save:
        save(args.save, figures, rounds, args, about)


if __name__ == "__main__":
    main()
