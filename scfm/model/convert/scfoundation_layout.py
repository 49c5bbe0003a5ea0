"""Which of the published tensors becomes which of ours.

in   the network's sizes
out  our name -> the published names, which are joined along their first dimension
"""

from scfm.model.config import ScfoundationSizes

# Counts training calls until the features' next draw; ours are a function of the step.
UNUSED = {"model.decoder.performer.calls_since_last_redraw"}


def places(sizes: ScfoundationSizes) -> dict[str, list[str]]:
    """Every tensor of our model, and where in the file it comes from."""
    found = {
        "value.of.bins": ["model.token_emb.emb.weight"],
        # the padding is kept with the mask, and read by nothing
        "value.marks": ["model.token_emb.emb_mask.weight", "model.token_emb.emb_pad.weight"],
        "position.weight": ["model.pos_emb.weight"],
        **_layer("value.of.spread", "model.token_emb.mlp"),
        **_layer("value.of.mix", "model.token_emb.mlp2"),
        **_layer("encoder.norm", "model.encoder.norm"),
        **_layer("decoder_in", "model.decoder_embed"),
        **_layer("decoder.norm", "model.decoder.norm"),
        **_layer("decoder.value_norm", "model.norm"),
        **_layer("value_out", "model.to_final"),
    }
    for number in range(sizes.n_layers):
        found |= _encoder_block(number)
    for number in range(sizes.n_decoder_layers):
        found |= _decoder_block(number)
    return found


def _layer(ours: str, *theirs: str) -> dict[str, list[str]]:
    return {f"{ours}.{part}": [f"{one}.{part}" for one in theirs] for part in ("weight", "bias")}


def _encoder_block(number: int) -> dict[str, list[str]]:
    ours = f"encoder.blocks.{number}"
    theirs = f"model.encoder.transformer_encoder.{number}"
    return {
        f"{ours}.qkv.weight": [f"{theirs}.self_attn.in_proj_weight"],
        f"{ours}.qkv.bias": [f"{theirs}.self_attn.in_proj_bias"],
        **_layer(f"{ours}.out", f"{theirs}.self_attn.out_proj"),
        **_layer(f"{ours}.attention_norm", f"{theirs}.norm1"),
        **_layer(f"{ours}.expand", f"{theirs}.linear1"),
        **_layer(f"{ours}.contract", f"{theirs}.linear2"),
        **_layer(f"{ours}.feedforward_norm", f"{theirs}.norm2"),
    }


def _decoder_block(number: int) -> dict[str, list[str]]:
    ours = f"decoder.blocks.{number}"
    theirs = f"model.decoder.performer.net.layers.{number}"
    attention, feedforward = f"{theirs}.0.fn", f"{theirs}.1.fn.fn"
    directions = f"{attention}.fast_attention.projection_matrix"
    return {
        f"{ours}.attention.directions": [directions],
        **_layer(f"{ours}.attention_norm", f"{theirs}.0.norm"),
        **_layer(f"{ours}.attention.q", f"{attention}.to_q"),
        **_layer(f"{ours}.attention.kv", f"{attention}.to_k", f"{attention}.to_v"),
        **_layer(f"{ours}.attention.out", f"{attention}.to_out"),
        **_layer(f"{ours}.feedforward_norm", f"{theirs}.1.norm"),
        **_layer(f"{ours}.feedforward.expand", f"{feedforward}.w1"),
        **_layer(f"{ours}.feedforward.out", f"{feedforward}.w2"),
    }
