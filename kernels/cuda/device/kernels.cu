// All kernels as one unit: one binary to load, and one list of what it is made of.
#include "attention.cu"
#include "embeddings.cu"
#include "layer_norm.cu"
#include "linear.cu"
#include "nearest.cu"
#include "pooling.cu"
