"""One small model for each family of transformers; `FAMILIES` holds what builds them by name.

Layers have several heads and neurons each, every parameter is random, and text is padded.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from earlyworm import Units
from earlyworm.inputs import call_model, floating_tensors

WIDTH, LAYERS, HEADS, NEURONS, WORDS = 32, 3, 4, 24, 60

BERT_LIKE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "vocab_size": WORDS,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
LLAMA_LIKE = {**BERT_LIKE, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": None}
VIT_LIKE = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "image_size": 16,
    "patch_size": 8,
    "num_labels": 5,
}
T5_LIKE = {
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": NEURONS,
    "num_layers": LAYERS,
    "num_decoder_layers": 2,
    "num_heads": HEADS,
    "vocab_size": WORDS,
    "relative_attention_num_buckets": 8,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "eos_token_id": None,
}


@dataclass(frozen=True)
class Family:
    """How to build a model, and what to try with it.

    Attributes:
        build: From the implementation of attention to a model.
        inputs: What the model takes.
        attention: The implementations of attention that it has.
        generates: Whether it writes text.
        heads: Names of its groups of heads, and how many there are in each.
        neurons: Names of its groups of neurons, and how many there are in each.
    """

    build: Callable[[str], nn.Module]
    inputs: Callable[[], dict[str, Tensor]]
    heads: dict[str, int]
    neurons: dict[str, int]
    attention: tuple[str, ...] = ("eager", "sdpa")
    generates: bool = False


def text(words: int = WORDS, rows: int = 2, length: int = 7) -> dict[str, Tensor]:
    """Random words, the second row padded on the left."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, words, (rows, length), generator=generator)
    mask = torch.ones_like(ids)
    ids[1, :2], mask[1, :2] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def sequences() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": text(length=5)["input_ids"].flip(0).clamp(min=1)}


def images(size: int = 16) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))}


def places(pattern: str, size: int, layers: int = LAYERS) -> dict[str, int]:
    """The same place in every layer."""
    return {pattern.format(layer): size for layer in range(layers)}


def from_config(model: Any, config: Any) -> Callable[[str], nn.Module]:
    return lambda attention: model._from_config(config(), attn_implementation=attention)


def bert_like(model: Any, config: type, layer: str, **options: Any) -> Family:
    return Family(
        from_config(model, lambda: config(**BERT_LIKE, **options)),
        text,
        heads=places(f"{layer}.attention", HEADS),
        neurons=places(f"{layer}.intermediate.dense", NEURONS),
    )


def vit_like(model: Any, config: type) -> Family:
    prefix = model.base_model_prefix
    return Family(
        from_config(model, lambda: config(**VIT_LIKE)),
        images,
        heads=places(f"{prefix}.layers.{{}}.attention", HEADS),
        neurons=places(f"{prefix}.layers.{{}}.mlp.fc1", NEURONS),
    )


def llama_like(model: Any, config: type, *, heads: int = 2, up: str = "gate_proj", **options: Any) -> Family:
    return Family(
        from_config(model, lambda: config(**{**LLAMA_LIKE, **options})),
        text,
        heads=places("model.layers.{}.self_attn", heads),
        neurons=places(f"model.layers.{{}}.mlp.{up}", NEURONS),
        generates=True,
    )


def t5_like(model: Any, config: type, activation: str, up: str) -> Family:
    within = {**places("encoder.block.{}.layer.0.SelfAttention", HEADS),
              **places("decoder.block.{}.layer.0.SelfAttention", HEADS, 2)}  # fmt: skip
    neurons = {**places(f"encoder.block.{{}}.layer.1.DenseReluDense.{up}", NEURONS),
               **places(f"decoder.block.{{}}.layer.2.DenseReluDense.{up}", NEURONS, 2)}  # fmt: skip
    return Family(
        from_config(model, lambda: config(**T5_LIKE, feed_forward_proj=activation)),
        sequences,
        heads={**within, **places("decoder.block.{}.layer.1.EncDecAttention", HEADS, 2)},
        neurons=neurons,
        generates=True,
    )


def gpt2_config(**options: Any) -> Any:
    return hf.GPT2Config(
        n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=NEURONS, vocab_size=WORDS, n_positions=40, pad_token_id=0,
        bos_token_id=1, eos_token_id=None, **options,
    )  # fmt: skip


def opt_config() -> Any:
    return hf.OPTConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, ffn_dim=NEURONS, vocab_size=WORDS,
        max_position_embeddings=40, word_embed_proj_dim=WIDTH, pad_token_id=0, bos_token_id=1, eos_token_id=None,
    )  # fmt: skip


def distilbert_config() -> Any:
    return hf.DistilBertConfig(
        dim=WIDTH, n_layers=LAYERS, n_heads=HEADS, hidden_dim=NEURONS, vocab_size=WORDS, max_position_embeddings=40
    )


def swin_config() -> Any:
    return hf.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, mlp_ratio=1.5,
        num_labels=5,
    )  # fmt: skip


def encoder_decoder(attention: str, writer: str = "gpt2") -> nn.Module:
    """BERT reads, GPT-2 or BERT writes: attention across sequences."""
    if writer == "gpt2":
        model, config = hf.GPT2LMHeadModel, gpt2_config(add_cross_attention=True)
    else:
        model, config = hf.BertLMHeadModel, hf.BertConfig(**BERT_LIKE, is_decoder=True, add_cross_attention=True)
    both = hf.EncoderDecoderModel(
        encoder=hf.BertModel._from_config(hf.BertConfig(**BERT_LIKE), attn_implementation=attention),
        decoder=model._from_config(config, attn_implementation=attention),
    )
    for settings in (both.config, both.generation_config):
        settings.decoder_start_token_id, settings.pad_token_id, settings.eos_token_id = 1, 0, None
    return both


def torch_encoder(attention: str) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, NEURONS, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)


def torch_transformer(attention: str) -> nn.Module:
    return nn.Transformer(WIDTH, HEADS, LAYERS, 2, NEURONS, batch_first=True)


def states(*names: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(5, 2, WIDTH, generator=generator) for name in names}


FAMILIES: dict[str, Family] = {
    "bert": bert_like(hf.BertForSequenceClassification, hf.BertConfig, "bert.encoder.layer.{}"),
    "minilm": bert_like(hf.BertModel, hf.BertConfig, "encoder.layer.{}"),
    "roberta": bert_like(hf.RobertaForSequenceClassification, hf.RobertaConfig, "roberta.encoder.layer.{}"),
    "xlm_roberta": bert_like(hf.XLMRobertaForMaskedLM, hf.XLMRobertaConfig, "roberta.encoder.layer.{}"),
    "electra": bert_like(hf.ElectraForPreTraining, hf.ElectraConfig, "electra.encoder.layer.{}", embedding_size=16),
    "deberta_v2": replace(
        bert_like(
            hf.DebertaV2ForSequenceClassification, hf.DebertaV2Config, "deberta.encoder.layer.{}",
            relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, share_att_key=True,
        ),
        attention=("eager",),
    ),
    "deberta_v2_own_positions": replace(
        bert_like(
            hf.DebertaV2Model, hf.DebertaV2Config, "encoder.layer.{}",
            relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=8, share_att_key=False,
        ),
        attention=("eager",),
    ),
    "distilbert": Family(
        from_config(hf.DistilBertForSequenceClassification, distilbert_config), text,
        heads=places("distilbert.transformer.layer.{}.attention", HEADS),
        neurons=places("distilbert.transformer.layer.{}.ffn.lin1", NEURONS),
    ),
    "albert": Family(
        from_config(hf.AlbertForMaskedLM, lambda: hf.AlbertConfig(**BERT_LIKE, embedding_size=16, num_hidden_groups=2)),
        text,
        heads=places("albert.encoder.albert_layer_groups.{}.albert_layers.0.attention", HEADS, 2),
        neurons=places("albert.encoder.albert_layer_groups.{}.albert_layers.0.ffn", NEURONS, 2),
    ),
    "vit": vit_like(hf.ViTForImageClassification, hf.ViTConfig),
    "deit": vit_like(hf.DeiTForImageClassification, hf.DeiTConfig),
    "swin": Family(
        from_config(hf.SwinForImageClassification, swin_config), lambda: images(32),
        heads={**places("swin.encoder.layers.0.blocks.{}.attention", 2, 2),
               **places("swin.encoder.layers.1.blocks.{}.attention", 4, 2)},
        neurons={**places("swin.encoder.layers.0.blocks.{}.mlp.fc1", 24, 2),
                 **places("swin.encoder.layers.1.blocks.{}.mlp.fc1", 48, 2)},
    ),
    "gpt2": Family(
        from_config(hf.GPT2LMHeadModel, gpt2_config), text, generates=True,
        heads=places("transformer.h.{}.attn", HEADS),
        neurons=places("transformer.h.{}.mlp.c_fc", NEURONS),
    ),
    "opt": Family(
        from_config(hf.OPTForCausalLM, opt_config), text, generates=True,
        heads=places("model.decoder.layers.{}.self_attn", HEADS),
        neurons=places("model.decoder.layers.{}.fc1", NEURONS),
    ),
    "llama": llama_like(hf.LlamaForCausalLM, hf.LlamaConfig),
    "llama_one_key_each": llama_like(hf.LlamaForCausalLM, hf.LlamaConfig, heads=4, num_key_value_heads=4),
    "llama_one_key": llama_like(hf.LlamaForCausalLM, hf.LlamaConfig, heads=4, num_key_value_heads=1),
    "llama_biased": llama_like(
        hf.LlamaForCausalLM, hf.LlamaConfig, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "mistral": llama_like(hf.MistralForCausalLM, hf.MistralConfig, sliding_window=4),
    "qwen2": llama_like(hf.Qwen2ForCausalLM, hf.Qwen2Config),
    "qwen3": llama_like(hf.Qwen3ForCausalLM, hf.Qwen3Config, head_dim=16),
    "gemma": llama_like(hf.GemmaForCausalLM, hf.GemmaConfig, head_dim=16, num_key_value_heads=1, heads=4),
    "gemma2": replace(
        llama_like(hf.Gemma2ForCausalLM, hf.Gemma2Config, head_dim=16, sliding_window=4), attention=("eager",)
    ),
    "phi3": llama_like(hf.Phi3ForCausalLM, hf.Phi3Config, up="gate_up_proj"),
    "phi3_one_key": llama_like(
        hf.Phi3ForCausalLM, hf.Phi3Config, up="gate_up_proj", num_key_value_heads=1, heads=4
    ),
    "t5": t5_like(hf.T5ForConditionalGeneration, hf.T5Config, "relu", "wi"),
    "t5_gated": t5_like(hf.T5ForConditionalGeneration, hf.T5Config, "gated-gelu", "wi_0"),
    "mt5": t5_like(hf.MT5ForConditionalGeneration, hf.MT5Config, "gated-gelu", "wi_0"),
    "bert_gpt2": Family(
        encoder_decoder, sequences, generates=True,
        heads={**places("encoder.encoder.layer.{}.attention", HEADS),
               **places("decoder.transformer.h.{}.attn", HEADS),
               **places("decoder.transformer.h.{}.crossattention", HEADS)},
        neurons={**places("encoder.encoder.layer.{}.intermediate.dense", NEURONS),
                 **places("decoder.transformer.h.{}.mlp.c_fc", NEURONS)},
    ),
    "bert_bert": Family(
        partial(encoder_decoder, writer="bert"), sequences, generates=True,
        heads={**places("encoder.encoder.layer.{}.attention", HEADS),
               **places("decoder.bert.encoder.layer.{}.attention", HEADS),
               **places("decoder.bert.encoder.layer.{}.crossattention", HEADS)},
        neurons={**places("encoder.encoder.layer.{}.intermediate.dense", NEURONS),
                 **places("decoder.bert.encoder.layer.{}.intermediate.dense", NEURONS)},
    ),
    "torch_encoder": Family(
        torch_encoder, lambda: states("src"), attention=("sdpa",),
        heads=places("layers.{}.self_attn", HEADS),
        neurons=places("layers.{}.linear1", NEURONS),
    ),
    "torch_transformer": Family(
        torch_transformer, lambda: states("src", "tgt"), attention=("sdpa",),
        heads={**places("encoder.layers.{}.self_attn", HEADS),
               **places("decoder.layers.{}.self_attn", HEADS, 2),
               **places("decoder.layers.{}.multihead_attn", HEADS, 2)},
        neurons={**places("encoder.layers.{}.linear1", NEURONS), **places("decoder.layers.{}.linear1", NEURONS, 2)},
    ),
}  # fmt: skip


def build(name: str, attention: str = "", seed: int = 0) -> nn.Module:
    """A model in eval mode whose parameters are all random: what is zero or one at first would hide differences."""
    model = FAMILIES[name].build(attention or FAMILIES[name].attention[-1])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = (2 / parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.3
            noise = scale * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise if parameter.dim() > 1 else parameter + noise)
    return model.eval()


def random_kept(units: Units, seed: int, density: float = 0.5) -> dict[str, Tensor]:
    """Any pattern that keeps at least one unit of every group, so that layers end up with different widths."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in units.groups:
        kept[group.name] = torch.rand(group.size, generator=generator) < density
        kept[group.name][torch.randint(group.size, (), generator=generator)] = True
    return kept


def outputs(model: nn.Module, inputs: Any) -> list[Tensor]:
    return list(floating_tensors(call_model(model, inputs)))


def assert_close(expected: Tensor, actual: Tensor, what: str = "output", tolerance: float = 1e-5) -> None:
    assert expected.shape == actual.shape, what
    difference = float((expected - actual).detach().abs().max())
    assert difference <= tolerance * max(1.0, float(expected.detach().abs().max())), (what, difference)
