#include "alu_operations.h"

extern "C" void host(const u* a, const u* b, const u* c, const float* x, const float* y,
                     const float* z, const double* p, const double* q, ull* o, int n) {
  for (int i = 0; i < n; i++)
    alu(a[i], b[i], c[i], x[i], y[i], z[i], p[i], q[i], o + (size_t)i * NF);
}
