"""How fast ditkit is, next to others: what `ditkit bench` measures.

ours, paper, diffusers   a network, its training step and its guided evaluation, as each does it
peers, suite             which there are; what of them is timed in turn
products, memory         the rate of products of matrices here; what a step takes, in a process of its own
gpu, several_gpus        training steps and sampling on a GPU, and on several
"""
