#!/usr/bin/env python3
"""Golden inputs and outputs of the test models, computed by ONNX Runtime in float32.

Writes OUT/<model>/<case>.npz with one array `in.<name>` an input and `out.<name>` an output.
Inputs are seeded, so a second run writes the same inputs. The second case of each model pads its
last row on the right, so that `attention_mask` is not all ones.

usage: golden.py OUT --tiny FOLDER [--cache CACHE]
  --tiny   a folder of tiny graphs: two cases each
  --cache  the folder with models/minilm, models/smollm2 and text: two cases each
"""
import argparse
import pathlib
import zlib

import numpy as np
import onnx
import onnxruntime as ort

TINY_VOCABULARY = 512
TINY_SIZES = [(1, 5), (2, 9)]  # batch, sequence
TINY_PAST = [4, 7]  # cached positions of the graphs with past_* inputs
PADDING = 3


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def padded_mask(batch, length, case):
    mask = np.ones((batch, length), np.int64)
    if case == 1:
        mask[-1, -PADDING:] = 0
    return mask


def tiny_inputs(path, case):
    """Random inputs for one graph; the name of an input tells what it is."""
    batch, seq = TINY_SIZES[case]
    names = {i.name: i for i in onnx.load(path).graph.input}
    past = TINY_PAST[case] if any(n.startswith("past") for n in names) else 0
    rng = np.random.default_rng(zlib.crc32(f"{path.stem}/{case}".encode()))
    feeds = {}
    for name, value in names.items():
        if name == "input_ids":
            feeds[name] = rng.integers(0, TINY_VOCABULARY, (batch, seq), dtype=np.int64)
        elif name == "attention_mask":
            feeds[name] = padded_mask(batch, past + seq, case)
        elif name.startswith("past"):
            dims = value.type.tensor_type.shape.dim
            shape = (batch, dims[1].dim_value, past, dims[3].dim_value)
            feeds[name] = rng.standard_normal(shape, dtype=np.float32)
        else:
            raise SystemExit(f"{path}: no rule for the input `{name}`")
    return feeds


def write(out, model, case, feeds, run):
    names = [o.name for o in run.get_outputs()]
    results = dict(zip(names, run.run(None, feeds)))
    bad = [n for n, a in results.items() if not np.isfinite(a).all()]
    if bad:
        raise SystemExit(f"{model}/{case}: the outputs {bad} are not finite")
    folder = out / model
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {f"in.{n}": a for n, a in feeds.items()} | {f"out.{n}": a for n, a in results.items()}
    partial = folder / f"{case}.partial.npz"
    np.savez(partial, **arrays)
    partial.replace(folder / f"{case}.npz")
    print(f"{model}/{case}:", {n: list(a.shape) for n, a in arrays.items()}, flush=True)


def tiny(out, folder):
    for path in sorted(folder.glob("*.onnx")):
        run = session(path)
        for case, (batch, seq) in enumerate(TINY_SIZES):
            write(out, path.stem, f"{batch}x{seq}", tiny_inputs(path, case), run)


def text_tokens(cache, model):
    """Token ids of the middle of persuasion.txt, without special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(cache / "models" / model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = (cache / "text" / "persuasion.txt").read_text()
    ids = tokenizer.encode(text[200_000:204_000], add_special_tokens=False).ids
    return np.array(ids, np.int64)


def minilm(out, cache):
    run = session(cache / "models" / "minilm" / "model.onnx")
    ids = text_tokens(cache, "minilm")
    for case, (batch, seq) in enumerate([(1, 16), (2, 37)]):
        mask = padded_mask(batch, seq, case)
        tokens = ids[: batch * (seq - 2)].reshape(batch, seq - 2)
        cls, sep = np.full((batch, 1), 101), np.full((batch, 1), 102)
        feeds = {
            "input_ids": np.concatenate([cls, tokens, sep], 1) * mask,
            "attention_mask": mask,
            "token_type_ids": np.zeros((batch, seq), np.int64),
        }
        write(out, "minilm", f"{batch}x{seq}", feeds, run)


def smollm2(out, cache):
    run = session(cache / "models" / "smollm2" / "model.onnx")
    ids = text_tokens(cache, "smollm2")
    for batch, seq in [(1, 32), (2, 16)]:
        feeds = {"input_ids": ids[: batch * seq].reshape(batch, seq)}
        write(out, "smollm2", f"{batch}x{seq}", feeds, run)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--tiny", type=pathlib.Path, help="a folder of tiny graphs")
    parser.add_argument("--cache", type=pathlib.Path, help="the folder with models/ and text/")
    args = parser.parse_args()
    if args.tiny:
        tiny(args.out, args.tiny)
    if args.cache:
        minilm(args.out, args.cache)
        smollm2(args.out, args.cache)


if __name__ == "__main__":
    main()
