"""The same mathematics as Triton kernels for CUDA. Import a module here only with a CUDA tensor in hand: each imports triton.

Every kernel allocates with `torch.empty`, launches on a grid that follows from shapes alone and never waits for the
device, so a CUDA graph can hold it; arithmetic is fp32 inside and rounded once, at the store. Whether a product and a sum
may fuse is said at every launch, as Triton's own default is changing.
"""
