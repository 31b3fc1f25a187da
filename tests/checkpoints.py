"""Tiny checkpoints with a tokenizer, as `save_pretrained` writes them."""

from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer


def make_bert(folder: Path, texts: Iterable[str], layers: int = 4) -> BertModel:
    """Write a BERT with a vocabulary of the words of some texts; its maps differ from layer to layer."""
    words = sorted({word for text in texts for word in text.lower().split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *"abcdefghijklmnopqrstuvwxyz"]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    names = {word: number for number, word in enumerate(dict.fromkeys(vocabulary))}
    BertTokenizer(vocab=names, do_lower_case=True).save_pretrained(folder)
    return model
