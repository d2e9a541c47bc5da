#include "dispatch.hpp"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#include "runtime.hpp"

#if defined(PYCONV_HAVE_AVX2) || defined(PYCONV_HAVE_AVX512)
#include <cpuid.h>
#endif

namespace pyconv::cpu {

namespace {

struct Path {
  const Operations* operations;  // null: not in this build
  const char* name;
  bool supported;  // by this processor and operating system
};

#if defined(PYCONV_HAVE_AVX2) || defined(PYCONV_HAVE_AVX512)

// Feature bits: Intel SDM vol. 2A, CPUID; XCR0 bits: vol. 1, section 13.3. The processor may have
// AVX while the system does not save its registers, hence XCR0.
struct Features {
  bool avx2 = false, avx512 = false;
  // vdpbf16ps, and whether it takes as long as a multiply-add of single numbers. Intel's from
  // Sapphire Rapids on spend the time of two on it (LLVM 19's model): known by AMX or, as a virtual
  // machine may hide that, AVX512-FP16.
  bool avx512_bf16 = false, fast_bf16 = false;

  Features() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool osxsave = c & bit_OSXSAVE, avx = c & bit_AVX, fma = c & bit_FMA;
    if (!osxsave || !avx || !fma) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned ymm_state = 0x6;
    if ((low & ymm_state) != ymm_state) return;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
    // The compiler may use BMI too: every processor with AVX2 so far has it.
    avx2 = (b & bit_AVX2) && (b & bit_BMI) && (b & bit_BMI2);
#if defined(PYCONV_EMULATE_AVX512)
    avx512 = avx2;
#else
    constexpr unsigned zmm_state = 0xe6;
    constexpr unsigned needed = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
    avx512 = avx2 && (low & zmm_state) == zmm_state && (b & needed) == needed;
    constexpr unsigned amx_bf16 = 1u << 22, fp16 = 1u << 23, bf16 = 1u << 5;
    const bool slow = (d & (amx_bf16 | fp16)) != 0;
    if (!avx512 || !__get_cpuid_count(7, 1, &a, &b, &c, &d)) return;
    avx512_bf16 = (a & bf16) != 0;
    fast_bf16 = avx512_bf16 && !slow;
#endif
  }
};

#else
struct Features {
  bool avx2 = false, avx512 = false, avx512_bf16 = false, fast_bf16 = false;
};
#endif

const Features& features() {
  static const Features found;
  return found;
}

// Fastest first.
const std::vector<Path>& paths() {
  static const std::vector<Path> all = [] {
    const Operations* avx512_operations = nullptr;
    const Operations* avx2_operations = nullptr;
#if defined(PYCONV_HAVE_AVX512)
    avx512_operations = &avx512::operations;
#endif
#if defined(PYCONV_HAVE_AVX2)
    avx2_operations = &avx2::operations;
#endif
    return std::vector<Path>{{avx512_operations, "avx512", features().avx512},
                             {avx2_operations, "avx2", features().avx2},
                             {&portable::operations, "portable", true}};
  }();
  return all;
}

std::string join(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const Operations& find(const std::string& isa, const std::string& asked_by) {
  std::vector<std::string> known;
  for (const Path& path : paths()) {
    known.push_back(path.name);
    if (isa != path.name) continue;
    if (path.operations != nullptr && path.supported) return *path.operations;
    throw std::invalid_argument(asked_by + ": the instruction set '" + isa +
                                "' is not supported by " +
                                (path.operations == nullptr ? "this build" : "this machine") +
                                ". Available: " + join(available()) + ".");
  }
  throw std::invalid_argument(asked_by + ": unknown instruction set. Expected one of: " +
                              join(known) + ". Received: '" + isa + "'.");
}

std::atomic<const Operations*> selected{nullptr};

std::atomic<PairMode> pairs{PairMode::fast};

}  // namespace

std::vector<std::string> available() {
  std::vector<std::string> names;
  for (const Path& path : paths()) {
    if (path.operations != nullptr && path.supported) names.push_back(path.name);
  }
  return names;
}

const Operations& operations() {
  const Operations* current = selected.load(std::memory_order_acquire);
  if (current == nullptr) {
    const char* forced = std::getenv("PYCONV_FORCE_ISA");
    current = forced != nullptr && *forced != '\0' ? &find(forced, "PYCONV_FORCE_ISA")
                                                   : &find(available().front(), "pyconv");
    selected.store(current, std::memory_order_release);
  }
  return *current;
}

void select(const std::string& isa) {
  selected.store(&find(isa, "set_isa"), std::memory_order_release);
}

PairMode pair_mode() { return pairs.load(std::memory_order_relaxed); }
void set_pair_mode(PairMode mode) { pairs.store(mode, std::memory_order_relaxed); }
bool multiplies_pairs(bool by_instruction) {
  const PairMode mode = pair_mode();
  if (mode == PairMode::always) return !by_instruction || features().avx512_bf16;
  return mode == PairMode::fast && by_instruction && features().fast_bf16;
}

}  // namespace pyconv::cpu
