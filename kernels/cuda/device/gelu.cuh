// GELU in its exact form (Hendrycks and Gimpel 2016): x times the normal distribution's cumulative
// function, by the error function.
//
// The models that are served here were trained with it ("hidden_act": "gelu"). The epilogue that
// cuBLASLt offers is the tanh approximation of the same paper, which differs by up to 4.8e-4: less
// than an fp16 number near 1 can tell, more than one near 0 can. A model that asks for the approximation
// itself ("gelu_new", "gelu_pytorch_tanh") has no kernel here.
#pragma once

#include "primitives.cuh"

__device__ __forceinline__ float gelu(float x) {
    constexpr float INVERSE_SQUARE_ROOT_OF_2 = 0.70710678118654752f;
    const float half = 0.5f * x;
    return half + half * error_function(x * INVERSE_SQUARE_ROOT_OF_2);
}
