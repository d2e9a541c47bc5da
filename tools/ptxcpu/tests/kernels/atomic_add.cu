extern "C" __global__ void atom(const float* a, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) {
    float old = atomicAdd(&out[i % 7], a[i]);
    out[7 + i] = old;
  }
}
extern "C" __global__ void redk(const float* a, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&out[i % 7], a[i]);
}
