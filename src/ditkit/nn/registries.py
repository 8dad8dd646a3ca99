"""Parts of networks by name. One of one's own is another line, or a class that is put here at run time."""

from typing import Literal

from ditkit.lazy import Named

CONDITIONINGS: dict[str, Named | type] = {
    "adaln_zero": Named("ditkit.nn.blocks:AdaLNZero"),
    "adaln": Named("ditkit.nn.blocks:AdaLN"),
    "cross_attention": Named("ditkit.nn.blocks:CrossAttended"),
    "in_context": Named("ditkit.nn.blocks:InContext"),
}
"""How the blocks of a DiT learn of time and label (`ditkit.nn.blocks.Conditioning`)."""

ADAPTIVE = ("adaln_zero", "adaln")
"""Those of them that are known to be no sequence, without importing them."""

ATTENTIONS: dict[str, Named | type] = {
    "token": Named("ditkit.nn.downsampled:TokenDownsampledAttention"),
    "key_value": Named("ditkit.nn.downsampled:KeyValueDownsampledAttention"),
    "full": Named("ditkit.nn.downsampled:GridAttention"),
}
"""What a U-DiT's attention downsamples."""

Downsampler = Literal["depthwise_shortcut", "depthwise", "none"]
