"""Worker of train.py, run in megalodon-jax's environment: a step of the d384 configuration."""

import argparse
import importlib.metadata
import math
import os

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from megalodon_jax import MegalodonConfig, MegalodonForCausalLM

from common import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("f32", "bf16"), required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument(
        "--threads", type=int, required=True, help="XLA takes as many as there are processors to run on"
    )
    options = parser.parse_args()
    if len(os.sched_getaffinity(0)) != options.threads:
        parser.error(f"bound to {len(os.sched_getaffinity(0))} processors, not {options.threads}")
    config = MegalodonConfig(
        vocab_size=256,
        model_dim=384,
        num_layers=6,
        num_heads=1,
        z_dim=96,
        value_dim=768,
        ffn_hidden_dim=768,
        swiglu=True,
        cema_ndim=16,
        chunk_size=512,
        norm_num_groups=12,
        compute_dtype=jnp.bfloat16 if options.dtype == "bf16" else jnp.float32,
    )
    model = MegalodonForCausalLM(config, key=jax.random.PRNGKey(1))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-4))
    state = optimizer.init(eqx.filter(model, eqx.is_array))
    tokens = jax.random.randint(jax.random.PRNGKey(2), (options.batch, options.length), 0, config.vocab_size)

    @eqx.filter_jit(donate="all-except-first")
    def update(tokens, model, state):
        loss, gradients = eqx.filter_value_and_grad(lambda m: m.compute_loss(tokens, tokens))(model)
        updates, state = optimizer.update(gradients, state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), state, loss

    def step() -> None:
        nonlocal model, state
        model, state, loss = jax.block_until_ready(update(tokens, model, state))
        if not math.isfinite(float(loss)):
            raise ArithmeticError("the loss is not finite")

    version = importlib.metadata.version
    serve(
        step,
        {
            "version": f"{version('megalodon-jax')} on jax {version('jax')}",
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))),
        },
    )


if __name__ == "__main__":
    main()
