"""Text: frozen encoders that turn prompts into tokens and a vector, and their embeddings on disk.

    encoder = load_text_encoder("minilm")                   # .dim .length .identity
    text = encoder.encode(["a red heart"])                  # tokens (1, 77, 384), mask (1, 77), pooled (1, 384)
    cache = embed(source.captions, TextConfig(), folder)    # once; the encoder is freed
    text = cache(["a red heart"])                           # the same, from disk

Adding an encoder by name: a line in TEXT_ENCODERS; another kind of network: `encoders.open_model`.
"""

from typing import TYPE_CHECKING

from ditkit.lazy import exported
from ditkit.text.encoders import Text, TextConfig, TextEncoder, load_text_encoder
from ditkit.text.files import TEXT_ENCODERS, Entry

if TYPE_CHECKING:
    from ditkit.text.cache import TextCache, embed
else:
    __getattr__ = exported(__name__)

__all__ = [
    "TEXT_ENCODERS",
    "Entry",
    "Text",
    "TextCache",
    "TextConfig",
    "TextEncoder",
    "embed",
    "load_text_encoder",
]
