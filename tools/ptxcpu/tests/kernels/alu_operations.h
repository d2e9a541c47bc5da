#ifdef __CUDACC__
#define HD __device__ __forceinline__
#else
#define HD static inline
#include <cmath>
#include <cstdint>
#include <cstring>
#endif
typedef unsigned u;
typedef unsigned long long ull;
typedef long long ll;
// NF outputs per element, as 64-bit words
HD ull fb(float x) {
  u r;
  memcpy(&r, &x, 4);
  return x != x ? 0x7fffffffu : r;
}
HD ull db(double x) {
  ull r;
  memcpy(&r, &x, 8);
  return x != x ? 0x7fffffffffffffffull : r;
}
#define NF 60
HD void alu(u a, u b, u c, float x, float y, float z, double p, double q, ull* o) {
  int n = 0;
  int sa = (int)a, sb = (int)b;
  ull A = ((ull)a << 32) | b, B = ((ull)c << 32) | a;
  ll SA = (ll)A, SB = (ll)B;
  u s = c & 31;
  u nz = b | 1;
  int snz = (sb | 1) == -1 ? 3 : (sb | 1);
  ull NB = B | 1;
  ll SNB = (SB | 1) == -1 ? 5 : (SB | 1);
  o[n++] = a + b;
  o[n++] = a - b;
  o[n++] = a * b;
  o[n++] = (u)(((ull)a * b) >> 32);
  o[n++] = (u)(int)(((ll)sa * sb) >> 32);
  o[n++] = a / nz;
  o[n++] = a % nz;
  o[n++] = (u)(sa / snz);
  o[n++] = (u)(sa % snz);
  o[n++] = a << s;
  o[n++] = a >> s;
  o[n++] = (u)(sa >> s);
  o[n++] = A + B;
  o[n++] = A * B;
  o[n++] = A / NB;
  o[n++] = A % NB;
  o[n++] = (ull)(SA / SNB);
  o[n++] = (ull)(SA % SNB);
  o[n++] = A << (c & 63);
  o[n++] = (ull)(SA >> (c & 63));
  o[n++] = a / 7u;
  o[n++] = (u)(sa / 10);
  o[n++] = (u)(sa % 13);
  o[n++] = A / 1000003ull;
  o[n++] = (unsigned char)a;
  o[n++] = (u)(int)(signed char)a;
  o[n++] = (unsigned short)b;
  o[n++] = (u)(int)(short)b;
  o[n++] = (ull)(ll)(signed char)c;
  o[n++] = (sa < sb) | (a < b) << 1 | (SA <= SB) << 2 | (A >= B) << 3 | (x < y) << 4 |
           (x <= y) << 5 | (x > y) << 6 | (x >= y) << 7 | (x == y) << 8 | (x != y) << 9 |
           (!(x < y)) << 10 | (!(x >= z)) << 11 | (p < q) << 12 | (p != q) << 13 | (x != x) << 14;
  o[n++] = fb(x + y);
  o[n++] = fb(x - y);
  o[n++] = fb(x * y);
  o[n++] = fb(x / y);
  o[n++] = fb(fmaf(x, y, z));
  o[n++] = fb(sqrtf(fabsf(x)));
  o[n++] = fb(-x);
  o[n++] = fb(fabsf(x));
  o[n++] = db(p + q);
  o[n++] = db(p * q);
  o[n++] = db(p / q);
  o[n++] = db(fma(p, q, (double)z));
  o[n++] = db(sqrt(fabs(p)));
  o[n++] = fb((float)p);
  o[n++] = db((double)x);
  o[n++] = fb((float)a);
  o[n++] = fb((float)sa);
  o[n++] = fb((float)A);
  o[n++] = fb((float)SA);
  o[n++] = db((double)sa);
  o[n++] = db((double)A);
  float xc = fminf(fmaxf(x, -2e9f), 2e9f);
  o[n++] = (u)(int)xc;
  o[n++] = (ull)(ll)(xc * 1e5f);
  o[n++] = (u)fabsf(xc);
  o[n++] = fb(floorf(x));
  o[n++] = fb(ceilf(x));
  o[n++] = fb(truncf(x));
  o[n++] = fb(rintf(x));
  {
    int h = 0;
    for (u i = 0; i < (c & 15); i++) {
      switch ((a >> (2 * i)) & 7) {
        case 0:
          h += 3;
          break;
        case 1:
          h ^= sb;
          break;
        case 2:
          h *= 7;
          break;
        case 3:
          h -= (int)i;
          break;
        case 4:
          h |= 1;
          break;
        case 5:
          h <<= 1;
          break;
        case 6:
          h = ~h;
          break;
        default:
          h >>= 2;
      }
    }
    o[n++] = (u)h;
  }
  {
    u t[8];
    for (int i = 0; i < 8; i++) t[i] = a * i + b;
    u h = 0;
    for (u i = 0; i < 16; i++) {
      h += t[(h + c + i) & 7];
      t[(a + i) & 7] ^= h;
    }
    o[n++] = h;
  }
}
