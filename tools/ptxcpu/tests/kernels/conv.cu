extern "C" __global__ void conv2d(const float* __restrict__ x, const float* __restrict__ w,
                                  const float* __restrict__ b, float* __restrict__ y, int N, int C,
                                  int H, int W, int K, int R) {
  int pad = R / 2;
  int idx = blockIdx.x * blockDim.x + threadIdx.x;
  if (idx >= N * K * H * W) return;
  int ox = idx % W, oy = (idx / W) % H, k = (idx / (W * H)) % K, n = idx / (W * H * K);
  float s = b[k];
  for (int c = 0; c < C; c++)
    for (int r = 0; r < R; r++)
      for (int q = 0; q < R; q++) {
        int iy = oy + r - pad, ix = ox + q - pad;
        if (iy >= 0 && iy < H && ix >= 0 && ix < W)
          s += x[((n * C + c) * H + iy) * W + ix] * w[((k * C + c) * R + r) * R + q];
      }
  y[idx] = s > 0 ? s : 0.01f * s;
}
extern "C" __global__ void maxpool(const float* __restrict__ x, float* __restrict__ y,
                                   unsigned char* __restrict__ am, int NC, int H, int W) {
  int idx = blockIdx.x * blockDim.x + threadIdx.x;
  int OH = H / 2, OW = W / 2;
  if (idx >= NC * OH * OW) return;
  int ox = idx % OW, oy = (idx / OW) % OH, nc = idx / (OW * OH);
  float m = -__int_as_float(0x7f800000);
  int a = 0;
  for (int i = 0; i < 4; i++) {
    float v = x[(nc * H + oy * 2 + (i >> 1)) * W + ox * 2 + (i & 1)];
    if (v > m) {
      m = v;
      a = i;
    }
  }
  y[idx] = m;
  am[idx] = a;
}
extern "C" __global__ void softmaxrow(const float* x, float* y, int n) {  // one warp per row
  int row = blockIdx.x, l = threadIdx.x;
  float m = -1e30f;
  for (int j = l; j < n; j += 32) m = fmaxf(m, x[row * n + j]);
  for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
  float s = 0;
  for (int j = l; j < n; j += 32) s += __expf(x[row * n + j] - m);
  for (int o = 16; o; o >>= 1) s += __shfl_xor_sync(~0u, s, o);
  for (int j = l; j < n; j += 32) y[row * n + j] = expf(x[row * n + j] - m) / s;
}
