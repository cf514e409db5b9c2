"""Worker of llama_cpp.py, run in the gguf package's environment: writes a Llama of random bf16 weights."""

import argparse
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

LAYERS, DIM, HEADS, FFN, VOCABULARY, CONTEXT = 24, 2048, 16, 5504, 32000, 8192


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes, outputs first; 1,345.4 M values in all."""
    result: dict[str, tuple[int, ...]] = {
        "token_embd": (VOCABULARY, DIM),
        "output": (VOCABULARY, DIM),
        "output_norm": (DIM,),
    }
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            result[f"blk.{i}.{name}"] = (DIM, DIM)
        result |= {
            f"blk.{i}.ffn_gate": (FFN, DIM),
            f"blk.{i}.ffn_up": (FFN, DIM),
            f"blk.{i}.ffn_down": (DIM, FFN),
            f"blk.{i}.attn_norm": (DIM,),
            f"blk.{i}.ffn_norm": (DIM,),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    options = parser.parse_args()
    partial = options.path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    writer.add_name("random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(DIM)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(DIM // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(32)  # mostly bf16
    writer.add_tokenizer_model("none")
    for name, shape in shapes().items():
        if len(shape) == 1:
            writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), 4 * shape[0])
        else:
            stored = (shape[0], 2 * shape[1])  # as bytes
            writer.add_tensor_info(
                f"{name}.weight", stored, np.dtype(np.uint8), stored[0] * stored[1], GGMLQuantizationType.BF16
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(1)
    for shape in shapes().values():
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, np.float32))
        else:
            values = random.standard_normal(shape, np.float32) * np.float32(0.02)
            writer.write_tensor_data((values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8))
    writer.close()
    partial.rename(options.path)


if __name__ == "__main__":
    main()
