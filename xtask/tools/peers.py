"""The other runtimes that the benchmark runs beside fqc: how each prepares a model and runs it.

Each runner is a function from (folder of prepared models, threads) to a function from a batch of
inputs to a callable that does one inference. All quantised models are calibrated on emma.txt.
"""
import re

import numpy as np

CALIBRATION_WINDOWS = 64
WINDOW = 128
START = 0.1  # of the text


def text_windows(cache, name, count, length, model="minilm"):
    """Consecutive windows of tokens; MiniLM's lie between its two special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(cache / "models" / model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text = (cache / "text" / name).read_text()
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", text)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int64)
    first = int(len(ids) * START)
    own = length - 2 if model == "minilm" else length
    body = ids[first:first + count * own].reshape(count, own)
    if model != "minilm":
        return body
    ends = [np.full((count, 1), token, np.int64) for token in (101, 102)]
    return np.concatenate([ends[0], body, ends[1]], 1)


def feeds(ids, model="minilm"):
    if model != "minilm":
        return {"input_ids": ids}
    return {
        "input_ids": ids,
        "attention_mask": np.ones_like(ids),
        "token_type_ids": np.zeros_like(ids),
    }


def calibration(cache):
    windows = text_windows(cache, "emma.txt", CALIBRATION_WINDOWS, WINDOW)
    return [feeds(windows[i:i + 1]) for i in range(len(windows))]


def prepare(cache, name, make):
    """Makes cache/peers/<name> unless it is there; a model in the making has another name."""
    path = cache / "peers" / name
    if not path.exists():
        print(f"preparing {path}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name("partial-" + name)
        make(cache / "models/minilm/model.onnx", partial)
        for made in path.parent.glob("partial-" + path.stem + ".*"):
            if made != partial:
                made.replace(made.with_name(made.name.removeprefix("partial-")))
        partial.replace(path)
    return path


def dynamic_int8(_cache):
    def make(model, out):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(model, out, weight_type=QuantType.QInt8, per_channel=True)

    return make


def static_int8(cache):
    def make(model, out):
        from onnxruntime.quantization import (
            CalibrationDataReader,
            QuantFormat,
            QuantType,
            quantize_static,
        )

        class Reader(CalibrationDataReader):
            def __init__(self):
                self.batches = iter(calibration(cache))

            def get_next(self):
                return next(self.batches, None)

        quantize_static(
            model,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )

    return make


def nncf_w8a8(cache):
    def make(model, out):
        import nncf
        import openvino

        quantised = nncf.quantize(
            openvino.Core().read_model(model),
            nncf.Dataset(calibration(cache)),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=CALIBRATION_WINDOWS,
        )
        openvino.save_model(quantised, out, compress_to_fp16=False)

    return make


def onnxruntime_runner(path, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    return lambda inputs: lambda: session.run(None, inputs)


def openvino_runner(path, threads, precision, pin):
    import openvino

    core = openvino.Core()
    config = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "ENABLE_CPU_PINNING": pin,
    }

    def ready(inputs):
        # Fixed shapes, which is OpenVINO at its best.
        model = core.read_model(path)
        model.reshape({name: list(array.shape) for name, array in inputs.items()})
        request = core.compile_model(model, "CPU", config).create_infer_request()
        # Neither inputs nor outputs are copied, as fqc copies none.
        return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)

    return ready


def peers(cache, threads, model="minilm", pin=True, float_model=None):
    """Name of each peer, and a function that makes its runner. OpenVINO's threads stay where it puts
    them (its default), or go where the process does if `pin` is false."""
    float_model = float_model or cache / "models" / model / "model.onnx"

    def ort(name=None, make=None):
        return lambda: onnxruntime_runner(
            prepare(cache, name, make(cache)) if name else float_model, threads
        )

    def ov(precision, name=None, make=None):
        return lambda: openvino_runner(
            prepare(cache, name, make(cache)) if name else float_model, threads, precision, pin
        )

    floats = {
        "onnxruntime f32": ort(),
        "openvino f32": ov("f32"),
        "openvino bf16": ov("bf16"),
    }
    if model != "minilm":
        return floats
    return floats | {
        "onnxruntime dynamic int8": ort("dynamic-int8.onnx", dynamic_int8),
        "onnxruntime static int8": ort("static-int8.onnx", static_int8),
        "openvino nncf w8a8": ov("f32", "nncf-w8a8.xml", nncf_w8a8),
        "openvino nncf w8a8 bf16": ov("bf16", "nncf-w8a8.xml", nncf_w8a8),
    }
