"""Parts of networks: tensors in, tensors out. Whole networks live in `ditkit.backbones`."""
