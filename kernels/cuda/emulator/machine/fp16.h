// fp16 from and to fp32, rounding to nearest even, without help of the processor.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulated {

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

/// Moving the fields into place gives a number whose exponent is too small by 112, the difference of
/// the biases; multiplying by 2^112 mends it, subnormals included. Infinities and NaNs stay what they are.
inline float widen(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7FFFu) << 13;
    const uint32_t special = (half & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u;
    const uint32_t finite = bits_of(float_of(magnitude) * float_of((127u + 112u) << 23));
    const uint32_t value = special != 0 ? special | (magnitude & 0x007FFFFFu) : finite;
    return float_of(value | uint32_t(half & 0x8000u) << 16);
}

inline uint16_t narrow(float value) {
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return uint16_t(sign | 0x7E00u);
    // From 65,520 on the nearest is infinity.
    if (magnitude >= 0x477FF000u) return uint16_t(sign | 0x7C00u);
    if (magnitude < 0x38800000u) {
        // Subnormal: adding 0.5 leaves the number's multiple of 2^-24 in the lowest bits, rounded.
        const float moved = float_of(magnitude) + 0.5f;
        return uint16_t(sign | (bits_of(moved) - bits_of(0.5f)));
    }
    const uint32_t odd = magnitude >> 13 & 1u;
    return uint16_t(sign | ((magnitude - (112u << 23) + 0xFFFu + odd) >> 13));
}

}  // namespace emulated
