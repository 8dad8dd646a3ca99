"""How fast ditkit is, next to others: what `ditkit bench` measures.

ours, paper, diffusers   a network, its training step and its guided evaluation, as each does it
peers, running, suite    which there are; each in a process of its own; what of them is timed in turn
products, memory         the rate of bare products of matrices; how large a process is, and was at most
gpu, several_gpus        training steps and sampling on a GPU, and on several
"""
