// Tensor-core instructions: mma.sync m16n8kK and ldmatrix. The fragment layouts are those of the
// PTX manual; tests/test_mma_fragments.py checks them against independently written tables.
#pragma once
#include "memory.hpp"
#include "warp.hpp"

namespace ptxcpu {

// Element formats of the A and B operands: how many elements a
// 32-bit register holds, and how to read one.
struct Tf32Element {
  static constexpr int kPerRegister = 1;
  // The hardware ignores the low 13 bits; a kernel that wants rounding has to use cvt.rna.tf32.
  static float get(u32 reg, int) { return bits_as<float>(reg & 0xffffe000u); }
};

struct F16Element {
  static constexpr int kPerRegister = 2;
  static float get(u32 reg, int i) {
    return static_cast<float>(bits_as<f16>(u16(reg >> (16 * i))));
  }
};

struct Bf16Element {
  static constexpr int kPerRegister = 2;
  static float get(u32 reg, int i) { return bits_as<float>((reg >> (16 * i)) << 16); }
};

inline void need_whole_warp(Warp& warp, u32 mask, const char* instruction) {
  if (warp.size == 32 && mask == kFullMask) return;
  Thread& first = *warp.threads[0];
  fail(first, Fault::kCollectiveMismatch, first.wait_line, "%s needs all 32 lanes", instruction);
}

/// D = A * B + C for one m16n8kK tile. Thread::in holds the registers of A, then of B, then of C.
/// The products are summed in double precision and rounded once; hardware sums in an order and
/// precision of its own, so results agree only to rounding.
template <class Element, int K, bool ResultIsFloat, bool AccumulatorIsFloat>
void mma_m16n8(Warp& warp, u32 mask) {
  need_whole_warp(warp, mask, "mma.sync");
  constexpr int per_register = Element::kPerRegister;
  constexpr int k_step =
      4 * per_register;  // columns of A covered by one register of the four lanes
  constexpr int a_registers = 2 * (K / k_step);
  constexpr int b_registers = K / k_step;
  float a[16][K];
  float b[K][8];
  float c[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const u32* in = warp.threads[lane]->in;
    const int group = lane >> 2;
    const int quad = lane & 3;
    for (int r = 0; r < a_registers; ++r) {
      for (int e = 0; e < per_register; ++e) {
        const int row = group + 8 * (r & 1);
        const int column = (r >> 1) * k_step + quad * per_register + e;
        a[row][column] = Element::get(in[r], e);
      }
    }
    for (int r = 0; r < b_registers; ++r) {
      for (int e = 0; e < per_register; ++e) {
        b[r * k_step + quad * per_register + e][group] = Element::get(in[a_registers + r], e);
      }
    }
    const u32* accumulators = in + a_registers + b_registers;
    for (int r = 0; r < 4; ++r) {
      const u16 half_bits = static_cast<u16>(accumulators[r >> 1] >> (16 * (r & 1)));
      const float value = AccumulatorIsFloat ? bits_as<float>(accumulators[r])
                                             : static_cast<float>(bits_as<f16>(half_bits));
      c[group + 8 * (r >> 1)][2 * quad + (r & 1)] = value;
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane >> 2;
    const int quad = lane & 3;
    float d[4];
    for (int r = 0; r < 4; ++r) {
      const int row = group + 8 * (r >> 1);
      const int column = 2 * quad + (r & 1);
      double sum = c[row][column];
      for (int k = 0; k < K; ++k) sum += static_cast<double>(a[row][k]) * b[k][column];
      d[r] = static_cast<float>(sum);
    }
    u32* out = warp.threads[lane]->out;
    if (ResultIsFloat) {
      for (int r = 0; r < 4; ++r) out[r] = bits_as<u32>(d[r]);
    } else {
      for (int r = 0; r < 2; ++r) {
        const u32 low = bits_as<u16>(static_cast<f16>(d[2 * r]));
        const u32 high = bits_as<u16>(static_cast<f16>(d[2 * r + 1]));
        out[r] = low | high << 16;
      }
    }
  }
}

/// Loads `Count` 8x8 matrices of 16-bit elements; lane 8*i + r
/// holds the address of row r of matrix i.
template <int Count, bool Transposed>
void ldmatrix(Warp& warp, u32 mask) {
  need_whole_warp(warp, mask, "ldmatrix");
  for (int index = 0; index < Count; ++index) {
    u16 matrix[8][8];
    for (int row = 0; row < 8; ++row) {
      Thread& t = *warp.threads[index * 8 + row];
      const u8* source =
          shared_pointer<16, false>(t, t.in[0], Access::kRead, t.wait_line, "ldmatrix");
      memcpy(matrix[row], source, 16);
    }
    for (int lane = 0; lane < 32; ++lane) {
      const int group = lane >> 2;
      const int quad = lane & 3;
      const u32 low = Transposed ? matrix[2 * quad][group] : matrix[group][2 * quad];
      const u32 high = Transposed ? matrix[2 * quad + 1][group] : matrix[group][2 * quad + 1];
      warp.threads[lane]->out[index] = low | high << 16;
    }
  }
}

}  // namespace ptxcpu
