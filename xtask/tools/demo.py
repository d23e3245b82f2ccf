#!/usr/bin/env python3
"""The demonstration: all-MiniLM-L6-v2 through fqc, from ONNX file to sentence similarities.

usage: demo.py FQC CACHE, with FQC the binary, and models/minilm and text under CACHE
Compiles the model twice, in INT8 calibrated on emma.txt and in float, runs both on six sentences
and on text neither has seen, and prints similarities, error, sizes and speed.
"""
import argparse
import json
import pathlib
import subprocess

import numpy as np
from tokenizers import Tokenizer

import peers

SENTENCES = [
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "The central bank raised interest rates again.",
    "Borrowing money has become more expensive.",
    "She compiled the program without a single warning.",
    "The build finished and every test passed.",
]
SHAPES = ["1x16", "1x128", "8x128"]
UNSEEN_WINDOWS, WINDOW = 16, 128


def call(*command):
    print("$", *command, flush=True)
    subprocess.run(command, check=True)


def six_sentences(tokenizer_file):
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    return {
        "input_ids": np.array([e.ids for e in encoded], np.int64),
        "attention_mask": np.array([e.attention_mask for e in encoded], np.int64),
        "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
    }


def similarity_table(embeddings, exact):
    similar, wanted = embeddings @ embeddings.T, exact @ exact.T
    print("\ncosine similarity of the six sentences, INT8:")
    for number, (sentence, row) in enumerate(zip(SENTENCES, similar), 1):
        print(f"  {number}  {sentence:52}" + "".join(f"{x:6.2f}" for x in row))
    print(f"largest difference to the float build: {np.abs(similar - wanted).max():.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fqc", type=pathlib.Path)
    parser.add_argument("cache", type=pathlib.Path)
    args = parser.parse_args()
    source = args.cache / "models/minilm/model.onnx"
    tokenizer = args.cache / "models/minilm/tokenizer.json"
    folder = args.cache / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    int8, exact = folder / "minilm.fqbin", folder / "minilm-float.fqbin"
    call(args.fqc, "compile", source, "-o", int8,
         "--calib", args.cache / "text/emma.txt", "--tokenizer", tokenizer,
         "--max-extra", "2")
    call(args.fqc, "compile", source, "-o", exact, "--method", "none")

    unseen = peers.text_windows(args.cache, "persuasion.txt", UNSEEN_WINDOWS, WINDOW)
    inputs = {"sentences": six_sentences(tokenizer), "unseen": peers.feeds(unseen)}
    embeddings = {}
    for name, arrays in inputs.items():
        np.savez(folder / f"{name}.npz", **arrays)
        for model in (int8, exact):
            out = folder / f"{name}-{model.stem}-out.npz"
            call(args.fqc, "run", model, "--inputs", folder / f"{name}.npz", "--outputs", out)
            embeddings[name, model] = np.load(out)["sentence_embedding"]

    similarity_table(embeddings["sentences", int8], embeddings["sentences", exact])
    cosine = (embeddings["unseen", int8] * embeddings["unseen", exact]).sum(1)
    print(f"\ncosine of INT8 to float embeddings over {UNSEEN_WINDOWS} x {WINDOW} unseen tokens: "
          f"minimum {cosine.min():.4f}, mean {cosine.mean():.4f}")

    print("\nsize in MB:")
    for label, path in (("ONNX", source), ("fqbin float", exact), ("fqbin INT8", int8)):
        print(f"  {label:12}{path.stat().st_size / 1e6:8.1f}")

    print("\nmilliseconds, 2 threads, median:\n  shape      float     INT8    ratio")
    for shape in SHAPES:
        times = []
        for model in (exact, int8):
            command = [args.fqc, "bench", model, "--shape", f"input_ids={shape}",
                       "--threads", "2", "--json"]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            times.append(json.loads(answer)["median_ms"])
        print(f"  {shape:8}{times[0]:8.2f}{times[1]:9.2f}{times[0] / times[1]:8.1f}x")


if __name__ == "__main__":
    main()
