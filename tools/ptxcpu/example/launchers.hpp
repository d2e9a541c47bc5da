// Host launchers of the example; ordinary CUDA code that knows nothing about the emulation.
#pragma once
#include <cuda_runtime_api.h>

/// Mistakes that can be planted in the kernels, to see that the emulation reports them.
enum class Bug { kNone, kMissingBarrier, kOutOfBounds, kMissingWait, kNeverRaised };

/// out (columns x rows) = scale * transpose of in (rows x columns). The tile needs more than 48 KiB
/// of dynamic shared memory; `raise_limit` is whether to ask for it with cudaFuncSetAttribute.
cudaError_t launch_transpose(const float* in, float* out, int rows, int columns, float scale,
                             bool raise_limit, Bug bug, cudaStream_t stream);

/// c (m x n) = a (m x k) * b (k x n) in tf32; m and n multiples of 64, k of 16.
cudaError_t launch_gemm(const float* a, const float* b, float* c, int m, int n, int k, Bug bug,
                        cudaStream_t stream);
