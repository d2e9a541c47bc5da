// Leads calls of coverage functions to libFuzzer's.
//
// GCC's sanitizers define functions of the same names, which do nothing, and are loaded before
// libFuzzer, which is in an extension module of Python. This is preloaded before both. Jumps,
// because libFuzzer looks at who calls.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

#define FUNCTIONS(f)                                                                       \
  f(8bit_counters_init) f(pcs_init) f(trace_cmp1) f(trace_cmp2) f(trace_cmp4) f(trace_cmp8) \
      f(trace_const_cmp1) f(trace_const_cmp2) f(trace_const_cmp4) f(trace_const_cmp8)       \
          f(trace_div4) f(trace_div8) f(trace_gep) f(trace_switch)

#define DEFINE(name)                                           \
  __attribute__((visibility("hidden"))) void* target_##name;   \
  __attribute__((naked)) void __sanitizer_cov_##name(void) {   \
    __asm__("jmp *target_" #name "(%rip)");                    \
  }
FUNCTIONS(DEFINE)

__attribute__((constructor)) static void find(void) {
  void* const library = dlopen(getenv("PYCONV_LIBFUZZER"), RTLD_LAZY | RTLD_LOCAL);
  if (library == NULL) abort();
#define FIND(name) target_##name = dlsym(library, "__sanitizer_cov_" #name);
  FUNCTIONS(FIND)
}
