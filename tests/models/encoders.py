"""Tiny encoders of the Transformers library in double precision, of every kind that takes an attention variant."""

from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

TINY: dict[str, Any] = {"num_hidden_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
SPECIAL: dict[str, Any] = {"vocab_size": 60, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**TINY, **SPECIAL}
# A front end that normalises each frame by itself, as the large published models do: that of the Base models
# normalises over time, so padding would change every frame before attention comes in.
SPEECH = {
    **TINY,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "feat_extract_norm": "layer",
    "conv_bias": True,
    "do_stable_layer_norm": True,
}
VISION = {**TINY, "image_size": 64, "patch_size": 16}
TWO_STACKS = {
    **SPECIAL,
    "d_model": 32,
    "decoder_start_token_id": 1,
    "encoder_layers": 4,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
WHISPER = {**TWO_STACKS, "max_source_positions": 50}
MODERN = {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "global_attn_every_n_layers": 2, "local_attention": 8}

DOUBLE = torch.finfo(torch.float64).eps
SINGLE = torch.finfo(torch.float32).eps


def tokens(batch: int = 2, length: int = 40, seed: int = 1) -> Tensor:
    return torch.randint(5, 60, (batch, length), generator=torch.Generator().manual_seed(seed))


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Encoder(NamedTuple):
    """How to make a model, and what to call it with."""

    model_class: str
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    part: str = ""

    def make(self, **changes: Any) -> PreTrainedModel:
        """Return the same weights each time."""
        torch.manual_seed(0)
        chosen = getattr(transformers, self.model_class)
        model = chosen(chosen.config_class(**{**self.config, **changes})).double().eval()
        return model.get_submodule(self.part) if self.part else model


WORDS = {"input_ids": tokens()}
# 24 frames of 20 ms
SOUND = {"input_values": noise(2, 8000)}
IMAGES = {"pixel_values": noise(2, 3, 64, 64)}
MEL = {"input_features": noise(2, 80, 100)}
TRANSLATED = {"decoder_input_ids": tokens(2, 7)}

ENCODERS = {
    "bert": Encoder("BertModel", TEXT, WORDS),
    "bert_classifier": Encoder("BertForSequenceClassification", TEXT, WORDS),
    "roberta": Encoder("RobertaModel", TEXT, WORDS),
    "modernbert": Encoder("ModernBertModel", MODERN, WORDS),
    "electra": Encoder("ElectraModel", {**TEXT, "embedding_size": 32}, WORDS),
    "distilbert": Encoder(
        "DistilBertModel", {**SPECIAL, "dim": 32, "hidden_dim": 64, "n_layers": 4, "n_heads": 2}, WORDS
    ),
    "albert": Encoder("AlbertModel", {**TEXT, "embedding_size": 16}, WORDS),
    "nomic_bert": Encoder("NomicBertModel", TEXT, WORDS),
    "bart": Encoder("BartModel", TWO_STACKS, {**WORDS, **TRANSLATED}),
    "bart_encoder": Encoder("BartModel", TWO_STACKS, WORDS, "encoder"),
    "hubert": Encoder("HubertModel", SPEECH, SOUND),
    "hubert_ctc": Encoder("HubertForCTC", {**SPEECH, "vocab_size": 20}, SOUND),
    "wav2vec2": Encoder("Wav2Vec2Model", SPEECH, SOUND),
    "wav2vec2_conformer": Encoder("Wav2Vec2ConformerModel", {**SPEECH, "position_embeddings_type": "rotary"}, SOUND),
    "wav2vec2_bert": Encoder(
        "Wav2Vec2BertModel", {**TINY, "position_embeddings_type": "rotary"}, {"input_features": noise(2, 30, 160)}
    ),
    "data2vec_audio": Encoder("Data2VecAudioModel", SPEECH, SOUND),
    "sew": Encoder("SEWModel", {**SPEECH, "conv_dim": (16,) * 13}, SOUND),
    "whisper": Encoder("WhisperModel", WHISPER, {**MEL, **TRANSLATED}),
    "whisper_encoder": Encoder("WhisperModel", WHISPER, MEL, "encoder"),
    "ast": Encoder("ASTModel", {**TINY, "max_length": 64, "num_mel_bins": 32}, {"input_values": noise(2, 64, 32)}),
    "vit": Encoder("ViTModel", VISION, IMAGES),
    "deit": Encoder("DeiTModel", VISION, IMAGES),
    "dinov2": Encoder("Dinov2Model", VISION, IMAGES),
    "dinov3": Encoder("DINOv3ViTModel", VISION, IMAGES),
    "clip_vision": Encoder("CLIPVisionModel", VISION, IMAGES),
    "siglip_vision": Encoder("SiglipVisionModel", VISION, IMAGES),
    "beit": Encoder("BeitModel", VISION, IMAGES),
    "videomae": Encoder(
        "VideoMAEModel",
        {**VISION, "image_size": 32, "num_frames": 4},
        {"pixel_values": noise(2, 4, 3, 32, 32)},
    ),
}


def run(model: PreTrainedModel, inputs: dict[str, Tensor], **others: Any) -> Tensor:
    """Return the hidden states of the last layer, or what a task's head makes of them."""
    with torch.inference_mode():
        return output(model, inputs, **others)


def output(model: PreTrainedModel, inputs: dict[str, Tensor], **others: Any) -> Tensor:
    """Return what `run` returns, with its graph."""
    return next(value for value in model(**inputs, **others).values() if isinstance(value, Tensor))


def close(first: Tensor, second: Tensor, epsilon: float = DOUBLE) -> bool:
    """Whether two outputs agree but for rounding: four layers of a few hundred roundings each."""
    size = max(1.0, float(second.abs().max()))
    return bool((first - second).abs().max() <= 1000 * epsilon * size)
